//! Whether the program on an interface sees what comes in there: a frame of ours is put in at the ingress, where only
//! that program knows it, and the statistics of its flow tell.
//!
//! The frame belongs to a flow without legs, so the program that meets it drops it. Where no program does, the host's
//! stack drops it: it is addressed to the MAC address of another host. No wire carries it in any case.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use aya::TestRunOptions;
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _};
use msm_fastpath::{Admission, FlowEntry, FlowKey, FlowKind, FlowStats, GroupMode, PayloadTypes, csum};

use super::hop::Rung;
use super::load::{Kernel, TCX_INGRESS};
use super::net::Link;
use super::netlink::Requests;
use super::table::Table as _;
use super::tables::KernelTable;

/// Addresses for documentation, which nobody has (RFC 5737), and the port that discards.
const FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PORT: u16 = 9;
/// Locally administered, and nobody's.
const NOBODY: [u8; 6] = [0x02, 0x6d, 0x73, 0x6d, 0, 0];
const FRAME: usize = 60;
/// Frames that are tried before an interface is given up.
const TRIES: u32 = 3;
/// A frame waits for its turn like any packet, usually some microseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    /// The program met the frame.
    Yes,
    /// The frame came in, and the program did not meet it.
    No,
    /// It could not be tried.
    Unknown(&'static str),
}

/// The tests, and which interfaces have passed as they are.
#[derive(Debug)]
pub(super) struct SelfTest {
    table: KernelTable,
    tested: HashMap<u32, Link>,
}

impl SelfTest {
    pub(super) fn new(table: KernelTable) -> Self {
        Self { table, tested: HashMap::new() }
    }

    /// Whether an interface has been tested as it is now.
    pub(super) fn is_tested(&self, link: &Link) -> bool {
        self.tested.get(&link.ifindex) == Some(link)
    }

    /// Something about an interface changed, or all are to be tested again.
    pub(super) fn forget(&mut self, ifindex: Option<u32>) {
        match ifindex {
            Some(ifindex) => drop(self.tested.remove(&ifindex)),
            None => self.tested.clear(),
        }
    }

    /// Puts a frame in. Takes long only where the program does not see it.
    pub(super) fn run(&mut self, kernel: &Kernel, requests: &mut Requests, link: &Link, rung: Rung) -> Sees {
        let key = key(link.ifindex);
        let mut sees = Sees::No;
        for _ in 0..TRIES {
            sees = self.once(kernel, link.ifindex, &key);
            if sees != Sees::No {
                break;
            }
        }
        self.table.remove_flow(&key).ok();
        if sees == Sees::No && has_others(requests, link, rung) {
            sees = Sees::Unknown("programs of others look first and may have dropped it");
        }
        if sees != Sees::No {
            self.tested.insert(link.ifindex, link.clone());
        }
        sees
    }

    fn once(&mut self, kernel: &Kernel, ifindex: u32, key: &FlowKey) -> Sees {
        let index = self.table.self_test_index();
        let admission = Admission::any_ssrc(PayloadTypes::ANY);
        let mut entry = FlowEntry::new(FlowKind::Rtp, admission, index, 90_000);
        entry.mode = GroupMode::Opaque as u8;
        let ready = self
            .table
            .put_flow_stats(index, &FlowStats::ZERO)
            .and_then(|()| self.table.put_flow(key, &entry.under(key)));
        if ready.is_err() {
            return Sees::Unknown("the tables have no room");
        }
        let Ok(program) = kernel.self_test() else { return Sees::Unknown("there is no program for it") };
        let frame = frame(ifindex);
        match program.test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() }) {
            Ok(ran) if ran.return_value == 0 => {}
            Ok(_) => return Sees::Unknown("the interface takes no frame"),
            Err(_) => return Sees::Unknown("the kernel does not run it"),
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.table.flow_stats(index).is_ok_and(|stats| stats.packets > 0) {
                return Sees::Yes;
            }
            if Instant::now() >= deadline {
                return Sees::No;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn key(ifindex: u32) -> FlowKey {
    FlowKey::new(SocketAddr::from((FROM, PORT)), SocketAddr::from((TO, PORT)), ifindex)
}

/// Ethernet, IPv4, UDP without a checksum, RTP, the interface.
fn frame(ifindex: u32) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        at += bytes.len();
    };
    put(&NOBODY);
    put(&NOBODY);
    put(&[0x08, 0]);
    let len = (FRAME - 14) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip[12..16].copy_from_slice(&FROM.octets());
    ip[16..20].copy_from_slice(&TO.octets());
    let sum = csum::ipv4(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    put(&ip);
    put(&PORT.to_be_bytes());
    put(&PORT.to_be_bytes());
    put(&(len - 20).to_be_bytes());
    put(&[0, 0]);
    put(&[0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    put(&ifindex.to_ne_bytes());
    frame
}

/// Whether programs of others may take a packet before ours does.
fn has_others(requests: &mut Requests, link: &Link, rung: Rung) -> bool {
    // A filter is listed with its kind and by itself.
    const OURS: usize = 2;
    let listed = SchedClassifier::query_tcx(&link.name, TcAttachType::Ingress);
    let programs = listed.map(|(_, programs)| programs).unwrap_or_default();
    if rung == Rung::Tcx {
        // One that is not even listed is no victim of others.
        return programs.iter().position(|program| program.name_as_str() == Some(TCX_INGRESS)) > Some(0);
    }
    !programs.is_empty() || requests.clsact_filters(link.ifindex).is_ok_and(|filters| filters > OURS)
}

#[cfg(test)]
mod tests {
    use msm_fastpath::RtpFixed;
    use msm_fastpath::limits::SELF_TEST_IFINDEX;

    use super::*;

    #[test]
    fn the_frame_is_of_the_flow_and_names_its_interface() {
        let frame = frame(0x0102_0304);
        assert_eq!(csum::fold(csum::add_bytes(0, &frame[14..34])), 0xffff, "the IPv4 header's checksum");
        assert_eq!(frame[SELF_TEST_IFINDEX..SELF_TEST_IFINDEX + 4], 0x0102_0304_u32.to_ne_bytes());
        let key = key(7);
        assert_eq!((&frame[26..30], &frame[30..34]), (&key.src[12..], &key.dst[12..]));
        assert_eq!((&frame[34..36], &frame[36..38]), (&key.src_port[..], &key.dst_port[..]));
        assert_eq!(usize::from(u16::from_be_bytes([frame[38], frame[39]])), FRAME - 34);
        assert!(RtpFixed::parse(&frame[42..]).is_some_and(|rtp| rtp.version() == 2));
        assert_eq!(frame[0] & 1, 0, "to one host, which is nobody");
    }
}
