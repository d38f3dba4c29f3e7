//! What a person sees first: URLs that paste into a player, and whether strangers can use them.

use std::net::IpAddr;

use msm_runtime::telemetry::redact;
use tracing::{info, warn};

use crate::app::Addresses;
use crate::bind;
use crate::config::Config;

/// Logs the lines of [`lines`].
pub fn print(config: &Config, addresses: &Addresses, version: &str) {
    info!(event = "started", "{version}");
    for line in lines(config, addresses, &bind::local_addresses()) {
        match line {
            Line::Info(text) => info!(event = "listening", "{text}"),
            Line::Warn(text) => warn!(event = "open", "{text}"),
        }
    }
}

/// One line of the banner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// For information.
    Info(String),
    /// Somebody may want to act.
    Warn(String),
}

/// The banner. `local`: addresses of this machine.
pub fn lines(config: &Config, addresses: &Addresses, local: &[IpAddr]) -> Vec<Line> {
    let ip = addresses.rtsp.ip();
    let port = addresses.rtsp.port();
    let reachable: Vec<IpAddr> = if ip.is_unspecified() {
        local.iter().copied().filter(|l| ip.is_ipv6() || l.is_ipv4()).collect()
    } else {
        vec![ip]
    };
    // One loopback line is enough; a player on this machine takes either.
    let mut loopback = false;
    let hosts: Vec<String> = reachable
        .iter()
        .filter(|ip| !ip.is_loopback() || !std::mem::replace(&mut loopback, true))
        .map(|ip| match ip {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        })
        .collect();
    let mut lines = Vec::new();
    for pull in &config.plane.pulls {
        let from = redact(&pull.url);
        let urls = hosts.iter().map(|host| format!("rtsp://{host}/{}", pull.name)).collect::<Vec<_>>();
        lines.push(Line::Info(format!("{} (from {from}): {}", pull.name, urls.join("  "))));
    }
    let urls = hosts.iter().map(|host| format!("rtsp://{host}/NAME")).collect::<Vec<_>>();
    lines.push(Line::Info(format!("any path can be published to and played: {}", urls.join("  "))));
    if let Some(players) = addresses.players {
        let text = format!("media over UDP leaves from ports {} and {}", players.rtp, players.rtcp);
        lines.push(Line::Info(text));
    }
    lines.push(Line::Info(format!(
        "http://{}/v1/streams and http://{}/metrics for this host only",
        addresses.admin, addresses.admin
    )));
    if let Some(last) = lines.last_mut().filter(|_| !addresses.admin.ip().is_loopback()) {
        *last = Line::Info(format!("http://{0}/v1/streams and http://{0}/metrics", addresses.admin));
    }
    let open = reachable.iter().any(|ip| !ip.is_loopback());
    if open && config.plane.users.is_empty() {
        lines.push(Line::Warn(format!(
            "open to your network: anyone may publish and play; --user NAME:FILE asks for a password, \
             --rtsp 127.0.0.1:{port} restricts it to this machine"
        )));
    }
    lines
}

#[cfg(test)]
mod tests {
    use msm_control_plane::config::{Credentials, PullConfig, UserConfig};
    use msm_graph::PortPair;

    use super::*;

    fn addresses(rtsp: &str) -> Addresses {
        Addresses {
            rtsp: rtsp.parse().unwrap(),
            admin: "127.0.0.1:8081".parse().unwrap(),
            players: Some(PortPair { rtp: 8060, rtcp: 8061 }),
        }
    }

    fn text(config: &Config, rtsp: &str) -> String {
        let local = ["127.0.0.1", "::1", "192.168.1.20", "2001:db8::20"].map(|ip| ip.parse().unwrap());
        format!("{:#?}", lines(config, &addresses(rtsp), &local))
    }

    #[test]
    fn urls_of_every_address_paste_into_a_player_and_openness_is_said() {
        let config = Config::default();
        let text = text(&config, "[::]:8554");
        assert!(text.contains("rtsp://127.0.0.1:8554/NAME  rtsp://192.168.1.20:8554/NAME"), "{text}");
        assert!(text.contains("rtsp://[2001:db8::20]:8554/NAME"), "{text}");
        assert!(!text.contains("[::1]"), "{text}");
        assert!(text.contains("open to your network"), "{text}");
    }

    #[test]
    fn loopback_only_or_with_users_it_is_not_called_open() {
        let mut config = Config::default();
        assert!(!text(&config, "127.0.0.1:8554").contains("open to"));
        let credentials = Credentials::new("anna", "x");
        config.plane.users.push(UserConfig { name: "*".to_owned(), credentials });
        assert!(!text(&config, "[::]:8554").contains("open to"));
    }

    #[test]
    fn pulls_are_listed_with_their_camera_and_without_its_login() {
        let mut config = Config::default();
        config.plane.pulls.push(PullConfig::new("door", "rtsp://admin:s3cret@10.0.0.9/1"));
        let text = text(&config, "0.0.0.0:8554");
        assert!(text.contains("rtsp://192.168.1.20:8554/door"), "{text}");
        assert!(text.contains("rtsp://***@10.0.0.9/1"), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("2001:db8"), "{text}");
    }
}
