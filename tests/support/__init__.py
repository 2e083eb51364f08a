"""What the end-to-end tests share: a daemon of their own, guests, and a look at the machine."""
