"""Paravirtual devices after OASIS VIRTIO 1.2: transports (mmio, pci), split virtqueues, and the devices behind them."""
