//! Setting the media of a camera up: which transport to ask for, which ports and channels, and the inputs that
//! follow from what it answered.

use std::net::IpAddr;
use std::time::Instant;

use msm_graph::{ConnId, Encap, InputRow, TrackId};
use msm_rtsp::message::Status;
use msm_rtsp::transport::{Agreed, ChannelRange, LowerTransport, PortRange, TransportSpec};

use super::{Phase, Upstream, UpstreamMedia, UpstreamOutput};
use crate::config::PullTransport;

impl Upstream {
    /// Sets every media up anew, on the connection there is.
    pub(super) fn open(&mut self, now: Instant) {
        self.lower = match self.route.transport {
            PullTransport::Tcp => LowerTransport::Tcp,
            PullTransport::Udp => LowerTransport::Udp,
            PullTransport::Auto if self.prefers_tcp => LowerTransport::Tcp,
            PullTransport::Auto => LowerTransport::Udp,
        };
        self.generation = self.generation.wrapping_add(1);
        self.next = 0;
        self.active = false;
        self.probe = None;
        self.agreed = vec![None; self.media.len()];
        self.ports = vec![None; self.media.len()];
        if self.lower == LowerTransport::Udp {
            self.enter(Phase::Ports);
            self.install(now);
        } else {
            self.enter(Phase::SettingUp);
            self.set_up_next(now);
        }
    }

    pub(super) fn install(&mut self, now: Instant) {
        let (Some(local), Some(peer), Some(conn)) = (self.local, self.peer, self.conn) else {
            return self.fail(now, Status::BAD_GATEWAY, "connection_closed");
        };
        let is_final = self.phase == Phase::Installing;
        let inputs = self
            .media
            .iter()
            .zip(&self.agreed)
            .filter(|(_, agreed)| !is_final || agreed.is_some())
            .map(|(media, agreed)| self.input(media, agreed.as_ref(), conn, local.ip(), peer.ip()))
            .collect();
        self.has_inputs = true;
        self.stage = self.stage.wrapping_add(1);
        self.deadline = Some(now + self.times.upstream_reply);
        self.outputs.push_back(UpstreamOutput::Install(self.stage, inputs));
    }

    fn input(
        &self,
        media: &UpstreamMedia,
        agreed: Option<&Agreed>,
        conn: ConnId,
        local: IpAddr,
        peer: IpAddr,
    ) -> InputRow {
        let (encap, ssrc) = match agreed {
            Some(Agreed::Tcp { channels, ssrc }) => {
                let rtcp = channels.rtcp_channel().unwrap_or(channels.rtp);
                (Encap::Interleaved { conn, rtp: channels.rtp, rtcp }, *ssrc)
            }
            // `source=` is not believed: media is admitted from the RTSP peer's address only (SEC-2).
            Some(Agreed::Udp { rtp, rtcp, ssrc, .. }) => {
                (Encap::Udp { peer, peer_rtp: *rtp, peer_rtcp: *rtcp, local }, *ssrc)
            }
            None => (Encap::Udp { peer, peer_rtp: None, peer_rtcp: None, local }, None),
        };
        InputRow {
            track: TrackId(media.index as u8),
            encap,
            ssrc,
            feedback: media.profile.is_feedback(),
            generation: self.generation,
        }
    }

    pub(super) fn set_up_next(&mut self, now: Instant) {
        let Some(media) = self.media.get(self.next) else {
            if self.agreed.iter().all(Option::is_none) {
                return self.fail(now, Status::BAD_GATEWAY, "setup");
            }
            self.enter(Phase::Installing);
            return self.install(now);
        };
        let asked = match (self.lower, self.ports.get(self.next).copied().flatten()) {
            (LowerTransport::Udp, Some(ports)) => {
                TransportSpec::udp_request(media.profile, PortRange::pair(ports.rtp, ports.rtcp))
            }
            (LowerTransport::Udp, None) => return self.fail(now, Status::SERVICE_UNAVAILABLE, "no_ports"),
            (LowerTransport::Tcp, _) => {
                let rtp = (self.next.min(127) * 2) as u8;
                TransportSpec::tcp_request(media.profile, ChannelRange::pair(rtp, rtp + 1))
            }
        };
        if let Some(client) = &mut self.client {
            client.setup(now, self.next, media.url.clone(), asked);
        }
        self.drain_client(now);
    }

    pub(super) fn accept(&mut self, now: Instant, media: usize, agreed: Agreed) {
        if let Agreed::Tcp { channels, .. } = &agreed {
            let rtcp = channels.rtcp_channel();
            let is_taken = self.agreed.iter().flatten().any(|other| match other {
                Agreed::Tcp { channels: other, .. } => {
                    let used = [Some(other.rtp), other.rtcp_channel()];
                    used.contains(&Some(channels.rtp)) || used.contains(&rtcp)
                }
                Agreed::Udp { .. } => false,
            });
            if is_taken || rtcp == Some(channels.rtp) {
                return self.fail(now, Status::BAD_GATEWAY, "channels");
            }
        }
        if let Some(slot) = self.agreed.get_mut(media) {
            *slot = Some(agreed);
        }
        self.next = media + 1;
        self.set_up_next(now);
    }
}
