"""Disk images of other programs, for reading only: they are converted before a machine uses them.

source.py      what every image offers, and the part that all formats share
window.py      bounded reading: a file or a part of it, tables by pages, CRC-32C
vmdk.py        VMware: sparse, stream-optimised, flat and split images
vmdk_text.py   the descriptor of a VMDK
vdi.py         VirtualBox
vhd.py         Virtual PC and Hyper-V's first generation
vhdx.py        Hyper-V
ova.py         an appliance: a tar archive with one of its disks chosen
tar.py         finding members of such an archive
open.py        looks at a file and opens it as what it is

Nothing here trusts a header: tables are read by pages where they are used and must lie in the file; no buffer has a size that an
image names beyond a stated bound; and an image that uses more data than its file can hold refers to something twice and is refused,
so that a small file cannot become a large disk other than by compression.
"""
