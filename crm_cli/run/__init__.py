"""Many photos: find them, convert them in worker processes, remember what is done."""
