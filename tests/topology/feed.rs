//! A camera that a test drives packet by packet: known numbers in known headers.

use std::time::Duration;

use anyhow::Result;
use msm_tests::camera::Transport;
use msm_tests::ground::Ground;
use msm_tests::probe::wire::{Rtp, SenderReport, word_at};
use msm_tests::probe::{Player, Publisher, VIDEO_AUDIO};
use msm_tests::proxy::Proxy;

/// Where a run of the camera starts; each restart has another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) ssrc: u32,
    pub(crate) sequence: u16,
    pub(crate) timestamp: u32,
}

/// One publisher of a video and an audio track at 50 packets per second of its own time.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) publisher: Publisher,
    /// Headers of the two tracks at number 0.
    pub(crate) starts: [Start; 2],
    /// Packets sent, over all restarts; it stands in every payload.
    pub(crate) number: u32,
    base: u32,
    sent: u32,
}

/// Ticks of the two tracks per packet.
pub(crate) const TICKS: [u32; 2] = [1800, 160];
/// First bytes of every payload: an IDR slice, so that a splice resumes at once.
const MARK: [u8; 2] = [0x65, 0x88];
/// Wall clock at number 0, as NTP seconds.
const EPOCH: u64 = 3_900_000_000;

impl Feed {
    pub(crate) fn record(url: &str, transport: Transport) -> Result<Self> {
        let starts = [
            Start { ssrc: 0x0A0A_0001, sequence: 65_400, timestamp: u32::MAX - 90_000 },
            Start { ssrc: 0x0A0A_0002, sequence: 65_300, timestamp: 5_000 },
        ];
        let publisher = Publisher::record(url, VIDEO_AUDIO, transport)?;
        Ok(Self { publisher, starts, number: 0, base: 0, sent: 0 })
    }

    /// Sends the next packet of both tracks.
    pub(crate) fn next(&mut self) -> Result<()> {
        for track in 0..2 {
            let packet = self.packet(track, self.number);
            self.publisher.send(track, &packet)?;
        }
        self.skip();
        self.sent += 1;
        Ok(())
    }

    /// Time passes, but the next packet is lost on its way.
    pub(crate) fn skip(&mut self) {
        self.number += 1;
    }

    /// A packet of the present run.
    pub(crate) fn packet(&self, track: usize, number: u32) -> Vec<u8> {
        let start = self.starts[track];
        let run = number.wrapping_sub(self.base);
        let payload = [&MARK[..], &number.to_be_bytes(), &[0; 60]].concat();
        Rtp {
            payload_type: if track == 0 { 96 } else { 0 },
            // Sound has marks at the start of talk only.
            marker: track == 0,
            sequence: start.sequence.wrapping_add(run as u16),
            timestamp: start.timestamp.wrapping_add(run.wrapping_mul(TICKS[track])),
            ssrc: start.ssrc,
            payload,
        }
        .to_bytes()
    }

    /// Sends the sender reports of both tracks for the moment of the next packet.
    pub(crate) fn report(&mut self) -> Result<()> {
        let run = self.number.wrapping_sub(self.base);
        // 20 ms per packet.
        let millis = u64::from(self.number) * 20;
        let ntp = ((EPOCH + millis / 1000) << 32) | (((millis % 1000) << 32) / 1000);
        for (track, ticks) in TICKS.into_iter().enumerate() {
            let start = self.starts[track];
            let timestamp = start.timestamp.wrapping_add(run.wrapping_mul(ticks));
            let report =
                SenderReport { ssrc: start.ssrc, ntp, timestamp, packets: self.sent, octets: self.sent * 66 };
            self.publisher.send_control(track, &report.to_bytes())?;
        }
        Ok(())
    }

    /// The camera reboots: other SSRCs, sequence numbers and timestamps from the next packet on.
    pub(crate) fn restart(&mut self) {
        for (track, start) in self.starts.iter_mut().enumerate() {
            start.ssrc = start.ssrc.wrapping_mul(31).wrapping_add(7 + track as u32);
            start.sequence = start.sequence.wrapping_add(30_000);
            start.timestamp = start.timestamp.wrapping_sub(77_777_777);
        }
        self.base = self.number;
        self.sent = 0;
    }
}

/// A feed among the cameras of a case's ground.
pub(crate) fn record_on(ground: &Ground, proxy: &Proxy) -> Result<Feed> {
    ground.among_cameras(|| Feed::record(&ground.publish_url(proxy, "cam"), Transport::Udp))
}

/// Feeds until the rung that was asked for carries so many legs over UDP: longer than a restart takes to be
/// noticed, so that legs which have still to come back from there are not meant.
pub(crate) fn until_carried(feed: &mut Feed, ground: &Ground, proxy: &Proxy, legs: usize) -> Result<()> {
    if ground.rung().is_none() {
        return Ok(());
    }
    for _ in 0..20 {
        feed.next()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    ground.wait_until_carried(proxy, "cam", legs, || feed.next())
}

/// Packets as they are to be compared: in order of arrival, and by number where legs move between worker and
/// kernel, which may reorder a few (ADR 0005).
pub(crate) fn comparable(ground: &Ground, mut packets: Vec<Rtp>) -> Vec<Rtp> {
    if let (true, Some(first)) = (ground.is_kernel(), packets.first().map(|packet| packet.sequence)) {
        packets.sort_by_key(|packet| packet.sequence.wrapping_sub(first) as i16);
    }
    packets
}

/// The number inside a packet's payload.
pub(crate) fn number(packet: &Rtp) -> u32 {
    assert_eq!(packet.payload[..2], MARK, "a packet of somebody else");
    word_at(&packet.payload, 2)
}

/// Plays a stream whose camera is fed meanwhile: PLAY waits for a first packet.
pub(crate) fn play(feed: &mut Feed, url: &str, transport: Transport) -> Result<Player> {
    Player::play_after(url, transport, || feed.next())
}
