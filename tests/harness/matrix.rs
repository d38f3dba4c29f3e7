//! The interop matrix: {source, transport, codecs} × {player, transport}, and a pairwise selection of it.

use std::collections::BTreeSet;
use std::fmt;

use crate::camera::Transport;
use crate::fixture::Profile;
use crate::viewer::Player;

/// Where media comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// ffmpeg publishes to the proxy.
    FfmpegPublish,
    /// GStreamer's `rtspclientsink` publishes to the proxy.
    GstPublish,
    /// The same with a login and the payloaders that it chooses by itself.
    GstPublishLogin,
    /// The proxy pulls from GStreamer's RTSP server, with Digest authentication.
    GstServe,
    /// The proxy pulls from VLC.
    VlcServe,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::FfmpegPublish, Self::GstPublish, Self::GstPublishLogin, Self::GstServe, Self::VlcServe];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::FfmpegPublish => "ffmpeg publishes",
            Self::GstPublish => "rtspclientsink publishes",
            Self::GstPublishLogin => "rtspclientsink publishes, Digest, its own payloaders",
            Self::GstServe => "gst-rtsp-server, Digest, pulled",
            Self::VlcServe => "VLC, pulled",
        }
    }

    /// Codecs that it sends.
    pub fn profiles(self) -> impl Iterator<Item = Profile> {
        // One film is enough to prove a login; nobody else sends this one.
        let is_own =
            move |profile: &Profile| (*profile == Profile::H264Latm) == (self == Self::GstPublishLogin);
        Profile::ALL.into_iter().filter(is_own)
    }

    /// True when the proxy lets nobody publish or play without a login.
    pub fn needs_login(self) -> bool {
        self == Self::GstPublishLogin
    }

    /// True when the proxy dials the source.
    pub fn is_pulled(self) -> bool {
        matches!(self, Self::GstServe | Self::VlcServe)
    }
}

/// One source with its transport and codecs: what several cells share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scene {
    /// The source.
    pub source: Source,
    /// How its media reaches the proxy.
    pub transport: Transport,
    /// Its codecs.
    pub profile: Profile,
}

/// One viewer of one scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// What is played.
    pub scene: Scene,
    /// The player.
    pub player: Player,
    /// How its media leaves the proxy.
    pub transport: Transport,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}, {}", self.source.name(), self.transport.name(), self.profile.name())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} by {}", self.scene, self.player.name(), self.transport.name())
    }
}

impl Scene {
    /// Why no program can play this part (`docs/interop.md` lists them).
    pub fn impossible(self) -> Option<&'static str> {
        (self.source == Source::VlcServe && self.transport == Transport::Tcp)
            .then_some("VLC 3 as a server sends by UDP only and answers 461 to an interleaved SETUP")
    }

    /// A name for files and paths.
    pub fn slug(self) -> String {
        let source = match self.source {
            Source::FfmpegPublish => "ffmpeg",
            Source::GstPublish => "clientsink",
            Source::GstPublishLogin => "clientsink-login",
            Source::GstServe => "gst",
            Source::VlcServe => "vlc",
        };
        format!("{source}-{}-{}", self.transport.name(), self.profile.name())
    }
}

impl Cell {
    /// What the player leaves out although the cell works.
    pub fn reservation(self) -> Option<&'static str> {
        (self.player == Player::Retina && ["opus", "latm"].contains(&self.scene.profile.audio()))
            .then_some("picture only: retina 0.4 has no depacketiser for Opus and MP4A-LATM")
    }

    /// A name for files.
    pub fn slug(self) -> String {
        format!("{}-{}-{}", self.scene.slug(), self.player.name(), self.transport.name())
    }

    fn factors(self) -> [(u8, u8); 5] {
        let position = |index: Option<usize>| index.unwrap_or_default() as u8;
        [
            (0, position(Source::ALL.iter().position(|other| *other == self.scene.source))),
            (1, position(Transport::ALL.iter().position(|other| *other == self.scene.transport))),
            (2, position(Profile::ALL.iter().position(|other| *other == self.scene.profile))),
            (3, position(Player::ALL.iter().position(|other| *other == self.player))),
            (4, position(Transport::ALL.iter().position(|other| *other == self.transport))),
        ]
    }

    fn pairs(self) -> impl Iterator<Item = ((u8, u8), (u8, u8))> {
        let factors = self.factors();
        (0..5).flat_map(move |a| (a + 1..5).map(move |b| (factors[a], factors[b])))
    }
}

/// Every scene that some program can play.
pub fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for source in Source::ALL {
        for transport in Transport::ALL {
            for profile in source.profiles() {
                scenes.push(Scene { source, transport, profile });
            }
        }
    }
    scenes.retain(|scene| scene.impossible().is_none());
    scenes
}

/// Every possible cell.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for scene in scenes() {
        for player in Player::ALL {
            for transport in Transport::ALL {
                cells.push(Cell { scene, player, transport });
            }
        }
    }
    cells
}

/// A small selection in which every pair of values of two factors that can occur does occur.
///
/// Greedy and deterministic: the cell with most uncovered pairs comes next, among equals one that shares
/// its scene with an earlier cell, so that fewer sources are started.
pub fn pairwise(cells: &[Cell]) -> Vec<Cell> {
    let mut open: BTreeSet<_> = cells.iter().flat_map(|cell| cell.pairs()).collect();
    let mut chosen: Vec<Cell> = Vec::new();
    while !open.is_empty() {
        let gain = |cell: &Cell| {
            let shared = chosen.iter().any(|other| other.scene == cell.scene);
            (cell.pairs().filter(|pair| open.contains(pair)).count(), shared)
        };
        let Some(best) = cells.iter().rev().max_by_key(|cell| gain(cell)).copied() else {
            break;
        };
        for pair in best.pairs() {
            open.remove(&pair);
        }
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selection_covers_every_pair_in_at_most_30_cells() {
        let cells = all();
        let selection = pairwise(&cells);
        let pairs = |cells: &[Cell]| cells.iter().flat_map(|cell| cell.pairs()).collect::<BTreeSet<_>>();
        assert_eq!(pairs(&selection), pairs(&cells));
        assert!(selection.len() <= 30, "{} cells", selection.len());
        assert_eq!(cells.len(), (28 + 2) * 8);
    }
}
