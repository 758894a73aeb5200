from eden_hf.data.phantoms import phantom_dataset
from eden_hf.encoders import load_encoder
from eden_hf.matching.dense_maps import dense_maps
from eden_hf.matching.windows import dense_embeddings


def test_maps_of_windows_are_the_windows_embeddings():
    encoder = load_encoder("random:resnet18-half", size=32)
    image = phantom_dataset(1)[0]["image"].convert("L")
    expected = dense_embeddings(encoder, image, window=64, stride=8).vectors.permute(2, 0, 1)
    cosine = (dense_maps(encoder, [image])[0].vectors * expected).sum(dim=0)
    assert cosine.min() > 0.99  # bfloat16 at most
