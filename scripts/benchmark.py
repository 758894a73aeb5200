"""What things cost, each beside a plain way of doing the same: `python scripts/benchmark.py --quick`."""

from eden_hf.cli import bench

if __name__ == "__main__":
    bench()
