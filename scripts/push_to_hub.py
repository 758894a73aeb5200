"""Publish on the Hub: `python scripts/push_to_hub.py --source outputs/run --repo_id user/name --card card.yaml`."""

from eden_hf.cli import push

if __name__ == "__main__":
    push()
