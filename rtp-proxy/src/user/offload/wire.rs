//! What a stream knows, as the kernel's tables hold it, and back. Pure.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use msm_fastpath::csum::Delta;
use msm_fastpath::flow::octets;
use msm_fastpath::progress::units;
use msm_fastpath::{FlowStats, LegEntry, RtpEdit};
use msm_media::elsewhere::Counts;
use msm_media::{Elsewhere, Standing};

use crate::kernel::hop::Hop;

/// Time to live of what leaves: the proxy is the sender, as it is with sockets.
const TTL: u8 = 64;

/// The moment at which two clocks were read: the worker's and the kernel's, which is CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch {
    instant: Instant,
    nanos: u64,
}

impl Epoch {
    pub(crate) fn new(instant: Instant, nanos: u64) -> Self {
        Self { instant, nanos }
    }

    /// A moment of the kernel's; before the epoch it is the epoch.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        if nanos >= self.nanos {
            self.instant + Duration::from_nanos(nanos - self.nanos)
        } else {
            self.instant.checked_sub(Duration::from_nanos(self.nanos - nanos)).unwrap_or(self.instant)
        }
    }

    pub(crate) fn nanos(&self, instant: Instant) -> u64 {
        let since = |a: Instant, b: Instant| u64::try_from(a.saturating_duration_since(b).as_nanos());
        let after = since(instant, self.instant).unwrap_or(0);
        let before = since(self.instant, instant).unwrap_or(0);
        (self.nanos + after).saturating_sub(before)
    }
}

/// From where the kernel goes on.
pub(crate) fn start_of(standing: &Standing, clock_rate: u32, epoch: &Epoch) -> FlowStats {
    let arrival = epoch.nanos(standing.arrival);
    FlowStats {
        highest: standing.highest,
        window: standing.window,
        last_arrival: arrival,
        timestamp_at: epoch.nanos(standing.ts_at),
        last_timestamp: standing.ts,
        transit: units(arrival, clock_rate).wrapping_sub(standing.ts),
        jitter: (standing.jitter * 16.0) as u32,
        seen: 1,
        ..FlowStats::ZERO
    }
}

/// How far the kernel has come. What it copied to the worker is counted there.
pub(crate) fn progress_of(stats: &FlowStats, epoch: &Epoch) -> Elsewhere {
    Elsewhere {
        highest: stats.highest,
        window: stats.window,
        ts: stats.last_timestamp,
        ts_at: epoch.instant(stats.timestamp_at),
        arrival: epoch.instant(stats.last_arrival),
        jitter: f64::from(stats.jitter) / 16.0,
        counts: Counts {
            packets: stats.packets.saturating_sub(stats.copied),
            bytes: stats.bytes.saturating_sub(stats.copied_bytes),
            reordered: stats.reordered,
            duplicates: stats.duplicate,
        },
    }
}

/// A leg of packets that come in from `flow.0` to `flow.1` by interface `ingress`, and leave from `leg.0` to
/// `leg.1` by `hop`.
pub(crate) fn leg_entry(
    flow: (SocketAddr, SocketAddr),
    leg: (SocketAddr, SocketAddr),
    (hop, ingress): (&Hop, u32),
    edit: RtpEdit,
    id: u32,
) -> LegEntry {
    let local = if hop.local { LegEntry::LOCAL } else { 0 };
    let hairpin = if hop.ifindex == ingress { LegEntry::HAIRPIN } else { 0 };
    let addresses = replace_ip(replace_ip(Delta::NONE, flow.0.ip(), leg.0.ip()), flow.1.ip(), leg.1.ip());
    let ports = Delta::NONE.replace16(flow.0.port(), leg.0.port()).replace16(flow.1.port(), leg.1.port());
    LegEntry {
        edit,
        src: octets(leg.0.ip()),
        dst: octets(leg.1.ip()),
        dst_mac: hop.dst_mac,
        src_mac: hop.src_mac,
        src_port: leg.0.port().to_be_bytes(),
        dst_port: leg.1.port().to_be_bytes(),
        ifindex: hop.ifindex,
        id,
        address_delta: addresses.0,
        port_delta: ports.0,
        mtu: u16::try_from(hop.mtu).unwrap_or(u16::MAX),
        ttl: TTL,
        dscp: 0,
        flags: local | hairpin,
        pad: [0; 3],
    }
}

fn replace_ip(delta: Delta, old: IpAddr, new: IpAddr) -> Delta {
    match (old, new) {
        (IpAddr::V4(old), IpAddr::V4(new)) => delta.replace_bytes(&old.octets(), &new.octets()),
        (old, new) => delta.replace_bytes(&octets(old), &octets(new)),
    }
}

#[cfg(test)]
mod tests {
    use msm_fastpath::csum;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_deltas_of_a_leg_turn_the_checksums_of_its_flow_into_its_own() {
        let hop = Hop {
            ifindex: 3,
            interface: "v".to_owned(),
            src_mac: [2; 6],
            dst_mac: [4; 6],
            mtu: 1_500,
            local: true,
        };
        let payload = [0x80, 96, 0, 7, 1, 2, 3, 4, 9, 9, 9, 9, 0xff];
        for (camera, here, proxy, viewer) in [
            ("10.1.0.2:40000", "10.1.0.1:8062", "10.2.0.1:8060", "10.2.0.77:51000"),
            ("[fd01::2]:40000", "[fd01::1]:8062", "[fd02::1]:8060", "[fd02::77]:51000"),
        ] {
            let flow = (at(camera), at(here));
            let leg = (at(proxy), at(viewer));
            let entry = leg_entry(flow, leg, (&hop, 7), RtpEdit::TRANSPARENT, 9);
            let datagram = |(src, dst): (SocketAddr, SocketAddr)| {
                let len = 8 + payload.len() as u16;
                let mut bytes = Vec::new();
                bytes.extend(src.port().to_be_bytes());
                bytes.extend(dst.port().to_be_bytes());
                bytes.extend(len.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                let pseudo = match (src.ip(), dst.ip()) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => csum::pseudo_v4(src.octets(), dst.octets(), len),
                    (src, dst) => csum::pseudo_v6(octets(src), octets(dst), len),
                };
                csum::udp(pseudo, &bytes)
            };
            let delta = Delta(entry.address_delta).plus(Delta(entry.port_delta));
            assert_eq!(delta.apply_udp(datagram(flow)), datagram(leg), "{camera}");
            assert_eq!((entry.ifindex, entry.id, entry.mtu, entry.flags), (3, 9, 1_500, LegEntry::LOCAL));
            let back = leg_entry(flow, leg, (&Hop { local: false, ..hop.clone() }, 3), entry.edit, 9);
            assert_eq!(back.flags, LegEntry::HAIRPIN, "out by the NIC that it came in by");
        }
    }

    #[test]
    fn moments_survive_the_way_through_the_kernel() {
        let now = Instant::now();
        let epoch = Epoch::new(now, 5_000_000_000);
        for millis in [0, 1, 700] {
            let later = now + Duration::from_millis(millis);
            assert_eq!(epoch.instant(epoch.nanos(later)), later);
        }
        if let Some(before) = now.checked_sub(Duration::from_millis(3)) {
            assert_eq!(epoch.nanos(before), 4_997_000_000);
            assert_eq!(epoch.instant(4_997_000_000), before);
        }
    }
}
