"""What a photo costs, beside what it must cost: measured stages, counted floors, the published loop."""
