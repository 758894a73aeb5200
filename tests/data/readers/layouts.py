"""Small data sets in the layouts in which the real ones are published; each writer returns the folder it filled."""

import csv
import json

import numpy as np
import PIL.Image

from eden_hf.data.sources import read_cell

FINDINGS = {
    "00000001_000.png": "Cardiomegaly",
    "00000001_001.png": "Cardiomegaly|Emphysema",
    "00000002_000.png": "No Finding",
    "00000003_000.png": "Hernia|Pleural_Thickening",
    "00000004_000.png": "Infiltration",
}


def pixels(seed, width=8, height=6, colour=False):
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path, **options)


def save_dicom(path, array):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = array.tobytes() + b"\0" * (array.size % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def save_raw(path, array):
    """As JSRT: big-endian 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array.astype(">u2").tobytes())


def save_mask(path, inside):
    """A palette GIF, as SCR and DRIVE have them."""
    save(path, inside.astype(np.uint8) * 255)


def write_table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def masks_of(row):
    """Masks bool `[labels, H, W]` of a row of a task."""
    return np.stack([np.asarray(read_cell(cell, row["source_id"])) > 0 for cell in row["masks"]])


def row_of(data, source_id):
    return data[list(data["source_id"]).index(source_id)]


def chestxray14(folder, images="images", table="Data_Entry_2017.csv"):
    header = (
        "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
        "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", "",
    )  # fmt: skip
    rows = [[name, found, 0, int(name[:8]), 57, "M", "PA", 8, 6, 0.1, 0.1, ""] for name, found in FINDINGS.items()]
    write_table(folder / table, header, *rows)
    *train, test = FINDINGS
    (folder / "train_val_list.txt").write_text("\n".join(train) + "\n")
    (folder / "test_list.txt").write_text(test)
    for seed, name in enumerate(FINDINGS):
        save(folder / images.format(seed + 1) / name, pixels(seed))
    return folder


def vindr_cxr(folder):
    labels = ("Aortic enlargement", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis")
    votes = {"aa": ["010100", "010100", "000001"], "bb": ["000001", "000001", "001000"]}  # of R1, R2 and R3
    rows = [[name, f"R{n}", 0, *vote[1:5], 0, vote[5]] for name, own in votes.items() for n, vote in enumerate(own, 1)]
    annotations = folder / "annotations"
    write_table(
        annotations / "image_labels_train.csv", ["image_id", "rad_id", *labels, "Other diseases", "No finding"], *rows
    )
    write_table(
        annotations / "image_labels_test.csv",
        ["image_id", *labels, "Other disease", "No finding"],
        ["cc", 0, 0, 0, 0, 1, 1, 0],
    )
    for seed, name in enumerate(("train/aa", "train/bb", "test/cc")):
        save_dicom(folder / f"{name}.dicom", pixels(seed))
    return folder


def shenzhen(folder, count=20):
    for index in range(1, count + 1):
        name = f"CHNCXR_{index:04d}_{index % 2}"
        save(folder / "ChinaSet_AllFiles" / "CXR_png" / f"{name}.png", pixels(index))
        (folder / "ChinaSet_AllFiles" / "ClinicalReadings").mkdir(exist_ok=True)
        (folder / "ChinaSet_AllFiles" / "ClinicalReadings" / f"{name}.txt").write_text("male  45yrs\nnormal")
    return folder


SCR_MASKS = {
    "heart": (1, 5),
    "left clavicle": (4, 8),
    "right clavicle": (0, 3),
    "left lung": (3, 8),
    "right lung": (0, 4),
}  # columns
SCR_NAMES = {"fold1": ("JPCLN001", "JPCNN093"), "fold2": ("JPCLN002",)}


def scr(folder, side=16, image=None):
    """Radiographs of `side` pixels, masks of half of it; `image` writes one (raw by default)."""
    for fold, names in SCR_NAMES.items():
        for name in names:
            seed = int(name[-3:])
            density = np.random.default_rng(seed).integers(0, 4096, (side, side), dtype=np.uint16)
            if image is None:
                save_raw(folder / "All247images" / f"{name}.IMG", density)
            else:
                image(folder / "All247images" / name, density)
            for structure, (x0, x1) in SCR_MASKS.items():
                inside = np.zeros((side // 2, side // 2), bool)
                inside[seed % 3 : 5, x0:x1] = True
                save_mask(folder / "scratch" / fold / "masks" / structure / f"{name}.gif", inside)
    return folder


def chestx_det(folder, suffix=""):
    square = [[1, 1], [4, 1], [4, 3], [1, 3]]
    line = [[6, 0], [6, 5], [7, 5], [7, 0]]
    box = [1, 1, 4, 3]
    mass_and_nodule = {"syms": ["Mass", "Nodule", "Mass"], "boxes": [box] * 3, "polygons": [square, line, line]}
    train = [
        {"file_name": "36204.png", **mass_and_nodule},
        {"file_name": "36205.png", "syms": [], "boxes": [], "polygons": []},
    ]
    test = [{"file_name": "36199.png", "syms": ["Diffuse Nodule"], "boxes": [box], "polygons": [square]}]
    for split, entries in {"train": train, "test": test}.items():
        write_json(folder / f"ChestX_Det_{split}.json", entries)
        for entry in entries:
            save(folder / f"{split}{suffix}" / entry["file_name"], pixels(int(entry["file_name"][:5])))
    return folder


def siim_acr(folder, count=10, width=8, height=8):
    """Every other image has a pneumothorax: pixels 3 to 6 of the second column, and one more where the index is 0."""
    rows = []
    for index in range(count):
        name = f"1.2.276.0.7230010.3.1.4.8323329.{index}.1517875162.25808"
        if index % 2:
            rows.append([name, " -1"])
        else:
            rows.append([name, f" {height + 3} 4"])
        if index == 0:
            rows.append([name, " 0 1"])
        path = folder / "dicom-images-train" / f"1.2.3.{index}" / f"1.2.4.{index}" / f"{name}.dcm"
        save_dicom(path, pixels(index, width, height))
    write_table(folder / "train-rle.csv", ["ImageId", " EncodedPixels"], *rows)
    return folder


def vindr_rib(folder):
    ribs = [f"{side}{number}" for side in "RL" for number in range(1, 11)]
    for word, names in {"train": ("000", "001"), "val": ("196",)}.items():
        content = {"img": {}, **{rib: {} for rib in ribs}}
        for index, name in enumerate(names):
            file = f"VinDr_RibCXR_{word}_{name}.png"
            content["img"][str(index)] = f"data/{word}/img/{file}"
            for number, rib in enumerate(ribs):
                corners = [(0.4, number + 0.7), (5.9, number + 0.7), (5.9, number + 1.2), (0.4, number + 1.2)]
                content[rib][str(index)] = [{"x": x, "y": y} for x, y in corners]
            save(folder / "Data" / word / "img" / file, pixels(index, 10, 24))
        content["L10"]["0"] = "None"
        write_json(folder / "Data" / word / f"Vindr_RibCXR_{word}_mask.json", content)
    return folder


def drive(folder):
    for word, numbers in {"training": (21, 22), "test": (1,)}.items():
        for number in numbers:
            suffix = "training" if word == "training" else "test"
            save(folder / word / "images" / f"{number:02d}_{suffix}.tif", pixels(number, colour=True))
            save_mask(folder / word / "1st_manual" / f"{number:02d}_manual1.gif", pixels(number) > 200)
            save_mask(folder / word / "mask" / f"{number:02d}_{suffix}_mask.gif", pixels(number) > 20)
    save_mask(folder / "test" / "2nd_manual" / "01_manual2.gif", pixels(1) > 100)
    return folder


def chase(folder, subjects=(1, 10, 11, 14)):
    for subject in subjects:
        for eye in "LR":
            name, seed = f"Image_{subject:02d}{eye}", 2 * subject + (eye == "R")
            save(folder / f"{name}.jpg", pixels(seed, colour=True))
            save(folder / f"{name}_1stHO.png", pixels(seed) > 200)
            save(folder / f"{name}_2ndHO.png", pixels(seed) > 180)
    return folder
