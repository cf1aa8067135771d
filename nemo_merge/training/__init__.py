"""Training and decoding through NeMo's own trainer; importing this package does not import NeMo."""
