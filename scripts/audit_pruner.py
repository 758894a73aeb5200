"""Audit the Purposive Pruner: `python scripts/audit_pruner.py --run outputs/run --source phantoms:32`."""

from eden_hf.cli import audit

if __name__ == "__main__":
    audit()
