"""Several vCPUs, one cache of translated code: the lock over its tables, and the handshake before bytes become code.

    lock        held by whoever changes tables or code, or stores over code (drop, then store, as one); `lock` and `lock_depth`
    inside      1 while a vCPU executes translated code or the run time: it may hold addresses of guest memory, or of code
    handshake   its holder of the lock waits until every vCPU inside has been at a block's head (or waited for the lock) since

A store that found no code in its granules may still be on its way when another vCPU makes code from those bytes.  So a translator
first marks the granules, then shakes hands, and reads the bytes after that: stores that began before are done, later ones see the mark
and take the lock.  A page's first code marks all of its granules, so that pages with nothing but code cost one handshake; the first
store into the page corrects the marks.  While another thread shakes hands for a page, each vCPU drops its own write tags of it.

`stop` is the Python side's: it wants all vCPUs out of translated code (a flush of the cache, an access that must be alone).

A vCPU that is alone (`smp` is 0) does none of this.
"""

from __future__ import annotations

from ringfence.translate.layout import FIELDS, PAGE_ENTRY_BYTES, PAGES, SHARE, STORES, TLB, TLB_TABLE_BYTES, TLB_TABLES, VCPUS, WORDS
from ringfence.translate.native import cas64, fence, give_way, ld64, native, or32, order, relax, st64
from ringfence.translate.native_codes import LEFT_KICK
from ringfence.translate.native_mmu import INVALID

KICK_ASKED, KICK_SHAKE = 1, 2  # in the vCPU's word `kick`: to leave; only to shake hands
_SPINS = 1023
ALL_GRANULES = (1 << 64) - 1


def s_enter(cpu: int) -> int:
    """Into translated code, of stubs.py."""
    raise TypeError("compiled only")


@native
def lock_code(cpu: int) -> int:
    """Takes the lock; again by the same vCPU is allowed.  Who waits holds up no handshake, even where the host lets it not run."""
    me = ld64(cpu + WORDS["smp"])
    if me == 0:
        return 0
    if ld64(cpu + SHARE["lock"]) == me:
        st64(cpu + SHARE["lock_depth"], ld64(cpu + SHARE["lock_depth"]) + 1)
        return 0
    if cas64(cpu + SHARE["lock"], 0, me) == 0:
        return 0
    st64(cpu + WORDS["waiting"], 1)
    spins = 0
    while ld64(cpu + SHARE["lock"]) != 0 or cas64(cpu + SHARE["lock"], 0, me) != 0:
        relax()
        spins += 1
        if (spins & _SPINS) == 0:
            give_way()
    st64(cpu + WORDS["waiting"], 0)
    return 0


@native
def unlock_code(cpu: int) -> int:
    if ld64(cpu + WORDS["smp"]) == 0:
        return 0
    depth = ld64(cpu + SHARE["lock_depth"])
    if depth != 0:
        st64(cpu + SHARE["lock_depth"], depth - 1)
        return 0
    order()
    st64(cpu + SHARE["lock"], 0)
    return 0


@native
def drop_write_tags(cpu: int, host: int) -> int:
    """Stores to the page at this host address take the slow path from now on."""
    table = 0
    while table != TLB_TABLES:
        if (ld64(cpu + WORDS["dirty_tables"]) >> table) & 1:
            e = cpu + TLB + table * TLB_TABLE_BYTES
            end = e + TLB_TABLE_BYTES
            while e != end:
                tag = ld64(e + 8)
                if tag != INVALID and tag + ld64(e + 24) == host:
                    st64(e + 8, INVALID)
                e += 32
        table += 1
    return 0


@native
def page_host(cpu: int, number: int) -> int:
    """The host address of a page in the flat numbering."""
    r = cpu + STORES
    while ld64(r + 8) != 0:
        first = ld64(r + 16)
        if number >= first and number - first < (ld64(r + 8) - ld64(r)) >> 12:
            return ld64(r) + ((number - first) << 12)
        r += 32
    return 0


@native
def acknowledge(cpu: int) -> int:
    """Takes part in a handshake, if there is one.  No store is on its way."""
    number = ld64(cpu + SHARE["handshake"])
    if number != ld64(cpu + WORDS["acknowledged"]):
        order()
        host = ld64(cpu + SHARE["protected"])
        if host != 0:
            drop_write_tags(cpu, host)
        order()
        st64(cpu + WORDS["acknowledged"], number)
    return 0


@native
def is_on_its_way(other: int) -> int:
    """Whether a vCPU may hold addresses that it will store through."""
    return ld64(other + WORDS["waiting"]) == 0 and ld64(other + WORDS["inside"]) != 0


@native
def shake_hands(cpu: int, host: int) -> int:
    """Waits for all others; with the lock held.  `host`: a page whose write tags are dropped on the way, or 0."""
    number = ld64(cpu + SHARE["handshake"]) + 1
    st64(cpu + SHARE["protected"], host)
    order()
    st64(cpu + SHARE["handshake"], number)
    st64(cpu + WORDS["acknowledged"], number)
    fence()
    first = cpu + VCPUS
    end = first + 8 * ld64(cpu + SHARE["vcpus"])
    p = first
    while p != end:
        other = ld64(p)
        if other != cpu and is_on_its_way(other):
            or32(other + FIELDS["kick"], KICK_SHAKE)
        p += 8
    p = first
    while p != end:
        other = ld64(p)
        if other != cpu:
            spins = 0
            while is_on_its_way(other) and ld64(other + WORDS["acknowledged"]) != number:
                relax()
                spins += 1
                if (spins & _SPINS) == 0:
                    give_way()
            # One that is outside comes in with a look at `handshake`; should it do so right now, this does no harm.  One that waits
            # for the lock waits until this is over.
            if host != 0 and ld64(other + WORDS["acknowledged"]) != number:
                drop_write_tags(other, host)
        p += 8
    order()
    st64(cpu + SHARE["protected"], 0)
    st64(cpu + SHARE["handshakes"], ld64(cpu + SHARE["handshakes"]) + 1)
    return 0


@native
def hold_still(cpu: int, ra: int, granules: int) -> int:
    """With the lock held: from now on these granules of a page change under the lock only.  Whether anything had to be done."""
    entry = cpu + PAGES + (ra >> 12) * PAGE_ENTRY_BYTES
    old = ld64(entry)
    if (granules & ~old) == 0:
        return 0
    host = 0
    if old == 0:
        granules = ALL_GRANULES
        host = page_host(cpu, ra >> 12)
        drop_write_tags(cpu, host)
    st64(entry, old | granules)
    shake_hands(cpu, host)
    return 1


# ---- what the Python side calls
@native
def come_in(cpu: int) -> int:
    st64(cpu + WORDS["inside"], 1)
    fence()
    acknowledge(cpu)
    return 0


@native
def go_out(cpu: int) -> int:
    order()
    st64(cpu + WORDS["inside"], 0)
    return 0


@native
def stop_others(cpu: int) -> int:
    """Nobody enters translated code from now on, and who is there is asked to leave."""
    st64(cpu + SHARE["stop"], 1)
    fence()
    p = cpu + VCPUS
    end = p + 8 * ld64(cpu + SHARE["vcpus"])
    while p != end:
        other = ld64(p)
        if other != cpu and ld64(other + WORDS["inside"]) != 0:
            or32(other + FIELDS["kick"], KICK_ASKED)
        p += 8
    return 0


@native
def others_inside(cpu: int) -> int:
    """How many have not left yet."""
    count = 0
    p = cpu + VCPUS
    end = p + 8 * ld64(cpu + SHARE["vcpus"])
    while p != end:
        other = ld64(p)
        if other != cpu and ld64(other + WORDS["inside"]) != 0:
            count += 1
        p += 8
    return count


@native
def let_others_go_on(cpu: int) -> int:
    order()
    st64(cpu + SHARE["stop"], 0)
    return 0


@native
def hold_bytes_still(cpu: int, ra: int, size: int) -> int:
    """`hold_still` of bytes within one page, for Python's translator, which has the lock."""
    first = (ra & 0xFFF) >> 6
    last = ((ra & 0xFFF) + size - 1) >> 6
    granules = ALL_GRANULES << first
    if last != 63:
        granules &= (1 << (last + 1)) - 1
    return hold_still(cpu, ra, granules)


@native
def enter_shared(cpu: int) -> int:
    """`s_enter` of a vCPU among several."""
    come_in(cpu)
    if ld64(cpu + SHARE["stop"]):
        st64(cpu + WORDS["exit_reason"], LEFT_KICK)
    else:
        s_enter(cpu)
    go_out(cpu)
    return 0
