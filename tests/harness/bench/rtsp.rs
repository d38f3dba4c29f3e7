//! What the benchmark asks of RTSP: one publisher with one video track, viewers over UDP.

use std::net::{IpAddr, SocketAddr};

use crate::rtsp::Connection;
use anyhow::Context as _;

const SDP: &str = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=bench\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
                   m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n";

/// A session; it ends with its connection, or some time after it.
#[derive(Debug)]
pub struct Rtsp(Connection);

impl Rtsp {
    /// Connects, from a local address of choice: cameras are told apart by address.
    pub fn connect(to: SocketAddr, from: Option<IpAddr>) -> anyhow::Result<Self> {
        Ok(Self(Connection::open_from(&format!("rtsp://{to}/"), from)?))
    }

    /// Further requests are about a session of their own; those before stay as they are.
    pub fn begin_another(&mut self) {
        self.0.session = None;
    }

    /// Asks what it can do: an answer means that the proxy serves.
    pub fn options(&mut self) -> anyhow::Result<()> {
        self.0.request("OPTIONS", "*", &[], "")?.ok()?;
        Ok(())
    }

    /// Publishes one video track over UDP; returns the proxy's RTP port.
    pub fn publish(&mut self, url: &str, ports: (u16, u16)) -> anyhow::Result<u16> {
        self.0.request("ANNOUNCE", url, &[("Content-Type", "application/sdp")], SDP)?.ok()?;
        let transport = format!("RTP/AVP/UDP;unicast;client_port={}-{};mode=record", ports.0, ports.1);
        let setup =
            self.0.request("SETUP", &format!("{url}/streamid=0"), &[("Transport", &transport)], "")?.ok()?;
        self.0.request("RECORD", url, &[("Range", "npt=0.000-")], "")?.ok()?;
        let transport = setup.header("Transport").context("no Transport in the answer")?;
        let ports = transport.split(';').find_map(|p| p.trim().strip_prefix("server_port="));
        let first = ports.and_then(|p| p.split('-').next()).context("no server_port in the answer")?;
        Ok(first.parse()?)
    }

    /// Plays the one track over UDP to a local port pair.
    pub fn play(&mut self, url: &str, port: u16) -> anyhow::Result<()> {
        self.0.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let transport = format!("RTP/AVP;unicast;client_port={port}-{}", port + 1);
        self.0.request("SETUP", &format!("{url}/trackID=0"), &[("Transport", &transport)], "")?.ok()?;
        self.0.request("PLAY", url, &[("Range", "npt=0.000-")], "")?.ok()?;
        Ok(())
    }

    /// Ends what was played; when this returns the last copy is on its way.
    pub fn teardown(&mut self, url: &str) -> anyhow::Result<()> {
        self.0.request("TEARDOWN", url, &[], "")?.ok()?;
        Ok(())
    }
}
