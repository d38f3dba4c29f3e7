//! Bounds shared by kernel and user space: map capacities and loop limits.

/// Segments of one super-packet that are looked at. `UDP_SEGMENT` accepts up to 128 per send since
/// Linux 6.9 (64 before); a packet with more goes to user space, counted.
pub const MAX_SEGMENTS: u32 = 128;

/// Slots of one group, those of departed legs included.
pub const MAX_LEGS: u32 = 512;

/// Default capacity of the flow map and of the flow statistics.
pub const FLOWS: u32 = 16_384;

/// Default capacity of the legs, their gates and their counters.
pub const LEGS: u32 = 65_536;

/// Default capacity of the map of media addresses of ours.
pub const PORTS: u32 = 1_024;

/// Bytes of the event ring, a power of two and a multiple of the page size.
pub const EVENT_RING: u32 = 65_536;

/// Packets missing in a row that are told as an event.
pub const BURST_LOSS: u16 = 16;

/// A packet that comes later than this after the flow's last one begins a burst, in ns.
pub const BURST_GAP: u64 = 250_000;

/// Packets that a leg is sent by redirect, without a clone, before its interface is asked for anew: as many at most count
/// as sent to one that is gone.
pub const ASK_DEVICE: u32 = 32;

/// Packets per second and flow that do not continue the run and are handed to the worker all the same.
pub const STRANGE_PER_SECOND: u32 = 256;

/// A packet this far ahead of the highest one, or further, does not continue the run (RFC 3550 A.1).
pub const MAX_DROPOUT: u16 = 3_000;

/// A packet this far behind the highest one, or further, does not continue the run (RFC 3550 A.1).
pub const MAX_MISORDER: u16 = 100;

/// Seconds by which a packet's time may be off before it no longer continues the run (RTP-7).
pub const MAX_TIME_JUMP: u32 = 10;

/// Offset in the self-test's frame (Ethernet, IPv4, UDP, the fixed RTP header) of the index of the interface at whose
/// ingress it is to appear, in this machine's byte order.
pub const SELF_TEST_IFINDEX: usize = 14 + 20 + 8 + 12;

/// Counters of the `counters` map: one per reason to pass a packet on, the other verdicts, one per drop reason.
pub const COUNTERS: u32 = VERDICT_COUNTERS + crate::drop::DropReason::ALL.len() as u32;

/// Index in `counters`: passed to the kernel's own stack, because it is not for a media address of ours.
pub const COUNT_NOT_OURS: u32 = crate::pass::PassReason::NotOurs.counter();
/// Index in `counters`: admitted, to be forwarded.
pub const COUNT_FORWARD: u32 = crate::pass::PassReason::ALL.len() as u32;
/// Index in `counters`: handed to user space.
pub const COUNT_TO_USER: u32 = COUNT_FORWARD + 1;
/// Number of counters that stand before the drop reasons.
pub const VERDICT_COUNTERS: u32 = COUNT_TO_USER + 1;
