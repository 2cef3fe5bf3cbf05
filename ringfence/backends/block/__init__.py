"""Disks on the host: raw files and block devices, qcow2 images with their backing files, throw-away overlays.

open.py      looks at a file, opens its backing chain, makes overlays
raw.py       RawBlock
qcow2.py     Qcow2Block and the making of images, from these parts:
               qcow2_format.py     the header, and what is refused at once
               qcow2_areas.py      snapshots and bitmaps, which are kept as they are
               qcow2_mapping.py    L1 and L2 tables: guest cluster to host cluster
               qcow2_refcounts.py  reference counts, allocation
               qcow2_table.py      one cluster of a table, in memory and as bytes
               qcow2_block.py      reading, writing, the order of a commit
               qcow2_check.py      counting anew after a crash
               qcow2_create.py     empty images
               compression.py      compressed clusters
hostfile.py  one open file: whole transfers, fsync, holes, advisory locks
"""
