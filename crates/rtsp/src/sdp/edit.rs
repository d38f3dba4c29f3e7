//! The description that our clients see (`docs/protocols/rtsp.md`, Session descriptions).

use std::net::IpAddr;

use super::Sdp;
use super::lines::Line;
use super::media::is_key_line;
use crate::transport::Profile;
use crate::url::{Authority, Host, track_control};

/// How much of the source's session passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Detail {
    /// Everything that does no harm: recorders use `a=range`, `x-…`, `Media_header`, `framerate`.
    #[default]
    Full,
    /// Only what a player needs.
    Minimal,
}

/// Profile of the legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ProfilePolicy {
    /// `RTP/AVP` whatever the source speaks; `rtcp-fb` is removed.
    #[default]
    Avp,
    /// That of the source, AVPF with its `rtcp-fb`.
    AsSource,
}

/// Whether legs keep SSRC, sequence and timestamps of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TimestampPolicy {
    /// Mapped, as any leg may be after a splice: `a=ssrc`, `ts-refclk`, `mediaclk`, `sync-time` go.
    #[default]
    Projected,
    /// Kept.
    Transparent,
}

/// How a source's description becomes ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewerEdit {
    /// `sess-id` of `o=`, stable for the life of the upstream session (SDP-1).
    pub session_id: u64,
    /// `sess-version` of `o=`, raised by 1 with any change.
    pub version: u64,
    /// Our address as the client reached it: its family is that of `o=` and `c=`.
    pub address: IpAddr,
    /// What `a=tool` says of us.
    pub tool: String,
    /// Hosts and addresses of the source that must not appear (SDP-9), besides those that the description
    /// itself names in `o=`, `c=` and absolute controls.
    pub hidden: Vec<String>,
    /// How much passes.
    pub detail: Detail,
    /// Profile of the legs.
    pub profile: ProfilePolicy,
    /// Whether timestamps are kept.
    pub timestamps: TimestampPolicy,
}

impl ViewerEdit {
    /// An edit with the default policies.
    pub fn new(session_id: u64, version: u64, address: IpAddr) -> Self {
        Self {
            session_id,
            version,
            address,
            tool: "rtp-proxy".to_owned(),
            hidden: Vec::new(),
            detail: Detail::default(),
            profile: ProfilePolicy::default(),
            timestamps: TimestampPolicy::default(),
        }
    }
}

/// Shorter texts are not looked for: they would match by accident.
const MIN_HIDDEN_LEN: usize = 4;

pub(super) fn for_viewer(sdp: &Sdp, edit: &ViewerEdit) -> Sdp {
    let editor = Editor { edit, hidden: hidden_hosts(sdp, edit) };
    let media = sdp.media.iter().enumerate().map(|(i, lines)| editor.media(i, lines)).collect();
    Sdp { session: editor.session(&sdp.session), media }
}

/// What must not appear: our own address is among it, so that a second edit finds nothing new.
fn hidden_hosts(sdp: &Sdp, edit: &ViewerEdit) -> Vec<String> {
    let mut hidden: Vec<String> = edit.hidden.clone();
    hidden.push(edit.address.to_string());
    for line in sdp.session.iter().chain(sdp.media.iter().flatten()) {
        let text = String::from_utf8_lossy(line.value());
        let mut words = text.split_ascii_whitespace();
        let host = match line.kind() {
            // The last word: Tapo and TP-Link have a field more than they should.
            b'o' => words.next_back(),
            b'c' => words.nth(2),
            _ => None,
        };
        hidden.extend(host.and_then(|h| h.split('/').next()).map(str::to_owned));
        if let Some(("control", url)) = line.attribute()
            && let Some((_, rest)) = url.split_once("://")
        {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            hidden.extend(Authority::parse(authority).ok().map(|a| match a.host {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name,
            }));
        }
    }
    hidden.retain(|host| {
        host.len() >= MIN_HIDDEN_LEN && host.parse::<IpAddr>().map_or(true, |ip| !ip.is_unspecified())
    });
    for host in &mut hidden {
        host.make_ascii_lowercase();
    }
    hidden.sort_unstable();
    hidden.dedup();
    hidden
}

struct Editor<'a> {
    edit: &'a ViewerEdit,
    hidden: Vec<String>,
}

impl Editor<'_> {
    fn session(&self, lines: &[Line]) -> Vec<Line> {
        let edit = self.edit;
        let family = if edit.address.is_ipv4() { "IP4" } else { "IP6" };
        let any = if edit.address.is_ipv4() { "0.0.0.0" } else { "::" };
        let first = |kind: u8| lines.iter().find(|l| l.kind() == kind && !self.leaks(l));
        let mut out = vec![
            Line::new('v', "0"),
            Line::new('o', &format!("- {} {} IN {family} {}", edit.session_id, edit.version, edit.address)),
            first(b's').filter(|l| !l.value().is_empty()).cloned().unwrap_or_else(|| Line::new('s', "-")),
        ];
        // The order of RFC 8866 section 5; e, p and u are dropped (SDP-1).
        out.extend(first(b'i').cloned());
        out.push(Line::new('c', &format!("IN {family} {any}")));
        out.extend(lines.iter().filter(|l| l.kind() == b'b' && is_kept_bandwidth(l)).cloned());
        let times = lines.iter().filter(|l| matches!(l.kind(), b't' | b'r' | b'z')).cloned();
        let before = out.len();
        out.extend(times.skip_while(|l| l.kind() != b't'));
        if out.len() == before {
            out.push(Line::new('t', "0 0"));
        }
        self.attributes(
            lines,
            &Line::new('a', "control:*"),
            edit.profile == ProfilePolicy::AsSource,
            &mut out,
        );
        out
    }

    fn media(&self, index: usize, lines: &[Line]) -> Vec<Line> {
        let (head, is_feedback) = self.head(lines.first());
        let mut out = vec![head];
        out.extend(lines.iter().find(|l| l.kind() == b'i' && !self.leaks(l)).cloned());
        out.extend(lines.iter().filter(|l| l.kind() == b'b' && is_kept_bandwidth(l)).cloned());
        let control = Line::new('a', &format!("control:{}", track_control(index)));
        self.attributes(lines, &control, is_feedback, &mut out);
        out
    }

    /// The `m=` line with port 0 and the profile of the legs; kind and formats byte for byte (SDP-3).
    fn head(&self, line: Option<&Line>) -> (Line, bool) {
        let text = line.map(|l| String::from_utf8_lossy(l.value()).into_owned()).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let kind = words.next().unwrap_or("application");
        let _port = words.next();
        let proto = words.next().unwrap_or("RTP/AVP");
        let profile = Profile::from_proto(proto);
        let proto = match (profile, self.edit.profile) {
            (None, _) => proto,
            (Some(_), ProfilePolicy::Avp) => Profile::Avp.as_str(),
            (Some(p), ProfilePolicy::AsSource) if p.is_feedback() => Profile::Avpf.as_str(),
            (Some(_), ProfilePolicy::AsSource) => Profile::Avp.as_str(),
        };
        let mut value = format!("{kind} 0 {proto}");
        let mut has_format = false;
        for format in words {
            value.push(' ');
            value.push_str(format);
            has_format = true;
        }
        if !has_format {
            // A format that is no payload type: a number would name a codec.
            value.push_str(" *");
        }
        (Line::new('m', &value), proto == Profile::Avpf.as_str())
    }

    /// Attributes and unknown lines in their order, with `control` in the place of the source's.
    fn attributes(&self, lines: &[Line], control: &Line, is_feedback: bool, out: &mut Vec<Line>) {
        let mut has_control = false;
        for line in lines {
            let Some((name, _)) = line.attribute() else {
                continue;
            };
            match name {
                "control" if !has_control => {
                    out.push(control.clone());
                    has_control = true;
                }
                "control" => {}
                "tool" => out.push(Line::new('a', &format!("tool:{}", self.edit.tool))),
                "rtpmap" | "fmtp" => out.push(line.clone()),
                _ if self.is_kept(name, is_feedback) && !is_key_line(line) && !self.leaks(line) => {
                    out.push(line.clone());
                }
                _ => {}
            }
        }
        if !has_control {
            out.push(control.clone());
        }
    }

    fn is_kept(&self, name: &str, is_feedback: bool) -> bool {
        match name {
            // Ports and addresses of the source's own transport, and keys.
            "rtcp" | "rtcp-mux" | "rtcp-mux-only" | "rtcp-rsize" | "rtcp-xr" | "rtcp-unicast"
            | "source-filter" | "candidate" | "remote-candidates" | "end-of-candidates" | "ice-ufrag"
            | "ice-pwd" | "ice-lite" | "ice-options" | "fingerprint" | "setup" | "connection" | "alt"
            | "etag" | "msid" => false,
            "rtcp-fb" => is_feedback,
            "ssrc" | "ssrc-group" | "ts-refclk" | "mediaclk" | "sync-time" => {
                self.edit.timestamps == TimestampPolicy::Transparent
            }
            "sendonly" | "recvonly" | "sendrecv" | "inactive" | "ptime" | "maxptime" | "framesize"
            | "mid" | "group" | "extmap" | "type" | "charset" => true,
            _ => self.edit.detail == Detail::Full,
        }
    }

    /// Whether a line names the source: one of its hosts, or any RTSP or HTTP URL (SDP-9).
    fn leaks(&self, line: &Line) -> bool {
        let text = String::from_utf8_lossy(line.value()).to_ascii_lowercase();
        let has_url = ["rtsp://", "rtsps://", "rtspu://", "http://", "https://", "rtp://", "srtp://"]
            .iter()
            .any(|scheme| text.contains(scheme));
        // An extension's name is a URI that names no host of the source.
        let is_extmap = line.attribute().is_some_and(|(name, _)| name == "extmap");
        (has_url && !is_extmap) || self.hidden.iter().any(|host| contains_word(&text, host))
    }
}

/// `b=AS`, `b=TIAS` and `b=CT` pass; `RR` and `RS` are the source's own sharing of RTCP (RTP-28).
fn is_kept_bandwidth(line: &Line) -> bool {
    line.text().is_some_and(|t| t.starts_with("AS:") || t.starts_with("TIAS:") || t.starts_with("CT:"))
}

/// Whether `word` stands in `text` and is not part of a longer name or number.
fn contains_word(text: &str, word: &str) -> bool {
    let is_part = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_');
    let bytes = text.as_bytes();
    text.match_indices(word).any(|(at, _)| {
        !is_part(at.checked_sub(1).and_then(|i| bytes.get(i))) && !is_part(bytes.get(at + word.len()))
    })
}
