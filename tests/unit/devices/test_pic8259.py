"""8259A pair: initialisation, priorities, end-of-interrupt modes, cascade, spurious interrupts."""

from __future__ import annotations

from ringfence.devices.pic8259 import PicPair


def make(icw4: int = 1) -> tuple[PicPair, list[bool]]:
    outputs: list[bool] = []
    pic = PicPair(outputs.append)
    for handler, base, cascade in ((pic.master, 0x30, 4), (pic.slave, 0x38, 2)):
        handler.write(0, 1, 0x11)
        handler.write(1, 1, base)
        handler.write(1, 1, cascade)
        handler.write(1, 1, icw4)
    return pic, outputs


def pulse(pic: PicPair, number: int) -> None:
    pic.input(number)(True)
    pic.input(number)(False)


def test_edge_interrupt_and_eoi() -> None:
    pic, outputs = make()
    pulse(pic, 4)
    assert pic.pending() and outputs == [True]
    assert pic.acknowledge() == 0x34
    assert outputs == [True, False]
    pulse(pic, 4)
    assert not pic.pending()  # in service
    pic.master.write(0, 1, 0x20)
    assert pic.pending()


def test_fixed_priority_and_nesting() -> None:
    pic, _ = make()
    pulse(pic, 5)
    pulse(pic, 3)
    assert pic.acknowledge() == 0x33
    assert not pic.pending()
    pulse(pic, 1)
    assert pic.acknowledge() == 0x31
    pic.master.write(0, 1, 0x20)
    pic.master.write(0, 1, 0x0B)
    assert pic.master.read(0, 1) == 0x08  # ISR: 3 is still in service
    pic.master.write(0, 1, 0x63)  # specific EOI of 3
    assert pic.acknowledge() == 0x35


def test_slave_through_the_cascade() -> None:
    pic, _ = make()
    pulse(pic, 12)
    assert pic.acknowledge() == 0x3C
    pic.master.write(0, 1, 0x0B)
    pic.slave.write(0, 1, 0x0B)
    assert (pic.master.read(0, 1), pic.slave.read(0, 1)) == (0x04, 0x10)
    pulse(pic, 8)
    assert not pic.pending()  # the master holds its cascade input in service
    pic.slave.write(0, 1, 0x20)
    pic.master.write(0, 1, 0x20)
    assert pic.acknowledge() == 0x38


def test_special_fully_nested_mode_lets_a_higher_slave_input_through() -> None:
    pic, _ = make(icw4=0x11)
    pulse(pic, 12)
    pic.acknowledge()
    pulse(pic, 9)
    assert pic.acknowledge() == 0x39


def test_masking() -> None:
    pic, outputs = make()
    pic.master.write(1, 1, 0xFF)
    pulse(pic, 0)
    assert not pic.pending() and outputs == []
    assert pic.master.read(1, 1) == 0xFF
    pic.master.write(1, 1, 0xFE)
    assert outputs == [True]


def test_level_triggered_input_follows_its_line() -> None:
    pic, _ = make()
    pic.elcr.write(1, 1, 0xFF)
    assert pic.elcr.read(0, 2) == 0xDE00
    pic.input(11)(True)
    assert pic.acknowledge() == 0x3B
    pic.slave.write(0, 1, 0x20)
    pic.master.write(0, 1, 0x20)
    assert pic.pending()  # still asserted
    pic.input(11)(False)
    assert not pic.pending()


def test_spurious_vectors() -> None:
    pic, _ = make()
    assert pic.acknowledge() == 0x37
    pic.master.write(0, 1, 0x0B)
    assert pic.master.read(0, 1) == 0  # IRQ 7's ISR bit stays clear: the driver tells them apart by it
    pic.elcr.write(1, 1, 0x02)
    pic.input(9)(True)
    master_irr = pic.master
    master_irr.write(0, 1, 0x0A)
    assert master_irr.read(0, 1) == 4
    pic.input(9)(False)
    assert pic.acknowledge() == 0x37


def test_automatic_eoi_with_rotation() -> None:
    pic, _ = make(icw4=3)
    pic.master.write(0, 1, 0x80)
    for _ in range(2):
        pulse(pic, 3)
        pulse(pic, 4)
        assert pic.acknowledge() == 0x33
        assert pic.acknowledge() == 0x34


def test_rotation_on_eoi() -> None:
    pic, _ = make()
    pulse(pic, 3)
    pic.acknowledge()
    pic.master.write(0, 1, 0xA0)  # rotate on non-specific EOI
    pulse(pic, 3)
    pulse(pic, 4)
    assert pic.acknowledge() == 0x34
    pic.master.write(0, 1, 0x20)
    pic.master.write(0, 1, 0xC7)  # set priority: 7 lowest again
    pulse(pic, 4)
    assert pic.acknowledge() == 0x33


def test_special_mask_mode_admits_lower_priorities() -> None:
    pic, _ = make()
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 6)
    assert not pic.pending()
    pic.master.write(1, 1, 0x02)
    pic.master.write(0, 1, 0x68)
    assert pic.acknowledge() == 0x36


def test_poll_command() -> None:
    pic, _ = make()
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0
    pulse(pic, 6)
    pic.master.write(0, 1, 0x0C)
    assert pic.master.read(0, 1) == 0x86
    assert not pic.pending()


def test_nothing_is_requested_during_initialisation() -> None:
    pic, _ = make()
    pic.master.write(0, 1, 0x11)
    pulse(pic, 1)
    assert not pic.pending()
    for value in (0x20, 4, 1):
        pic.master.write(1, 1, value)
    assert pic.acknowledge() == 0x21


def test_before_initialisation_everything_is_masked() -> None:
    """A guest that uses only the APICs never programs the pair and must not get its interrupts twice."""
    pic = PicPair(lambda level: None)
    pulse(pic, 4)
    assert not pic.pending()
    pic.master.write(1, 1, 0xFB)
    assert pic.master.read(1, 1) == 0xFB  # drivers probe for the part by its mask register
