"""What things cost, each beside a plain way of doing the same: `eden bench`."""
