//! Where packets come from and go to, as the kernel's routing, neighbour and link tables say now.
//!
//! Values only: who finds them out and keeps them fresh is `hops.rs`.

use std::net::IpAddr;

/// How media is carried, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rung {
    /// By the TCX program of the source's interface.
    Tcx,
    /// By the same program on clsact.
    Tc,
    /// By a worker.
    User,
}

impl Rung {
    /// Stable name: metric label, JSON and `--max-rung`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Tc => "tc",
            Self::User => "user",
        }
    }
}

/// Why a leg or a flow is not in the kernel. The text is for people, [`UserReason::as_str`] for labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UserReason {
    /// The proxy was built without kernel programs.
    #[error("this proxy was built without kernel programs")]
    NotBuilt,
    /// `--max-rung user`.
    #[error("--max-rung user")]
    Capped,
    /// Programs cannot be loaded.
    #[error("the kernel refused the programs: {0}")]
    Refused(String),
    /// The interface is not one of `--interface`.
    #[error("{0} is not named by --interface")]
    NotNamed(String),
    /// Nothing can be attached to the interface.
    #[error("nothing can be attached to {interface}: {why}")]
    Interface {
        /// Its name.
        interface: String,
        /// What each rung answered.
        why: String,
    },
    /// The way leads through loopback or a device without Ethernet headers.
    #[error("{0} has no Ethernet headers")]
    NoEthernet(String),
    /// No route or no neighbour yet.
    #[error("no way to {0} yet")]
    Unresolved(IpAddr),
    /// The way out takes smaller packets than the way in delivers.
    #[error("{interface} takes {mtu} bytes, packets may have {wanted}")]
    Mtu {
        /// The interface out.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// MTU of the interface in.
        wanted: u32,
    },
    /// The leg leaves by the interface that its source comes in by.
    #[error("source and viewer are both behind {0}")]
    SameInterface(String),
    /// The leg's transport needs the worker.
    #[error("{0} needs the worker")]
    Transport(&'static str),
    /// The source is not in a steady run: starting, away, switching.
    #[error("the source is not steady")]
    Unsteady,
    /// The gate of the leg is shut.
    #[error("the leg is not playing")]
    Idle,
    /// The leg will be in the kernel in a moment.
    #[error("the leg is on its way")]
    Moving,
    /// The source sends by a flow that an earlier process left, whose viewers are still served from it.
    #[error("viewers from before a restart are still served by the kernel's former flow")]
    Adopting,
    /// The kernel's tables are full, or the stream has its share of them.
    #[error("the kernel's tables have no room: {0}")]
    Full(String),
}

impl UserReason {
    /// Stable name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotBuilt => "not_built",
            Self::Capped => "capped",
            Self::Refused(_) => "refused",
            Self::NotNamed(_) => "not_named",
            Self::Interface { .. } => "interface",
            Self::NoEthernet(_) => "no_ethernet",
            Self::Unresolved(_) => "unresolved",
            Self::Mtu { .. } => "mtu",
            Self::SameInterface(_) => "same_interface",
            Self::Transport(_) => "transport",
            Self::Unsteady => "unsteady",
            Self::Idle => "idle",
            Self::Moving => "moving",
            Self::Adopting => "adopting",
            Self::Full(_) => "full",
        }
    }
}

/// The way in of a source: an interface whose ingress has the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name, for people.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// By what the program is attached.
    pub rung: Rung,
}

/// The way out to a viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name, for people.
    pub interface: String,
    /// MAC address of the interface.
    pub src_mac: [u8; 6],
    /// MAC address of the viewer or of the router before it.
    pub dst_mac: [u8; 6],
    /// Path MTU in bytes: of the route, else of the interface.
    pub mtu: u32,
    /// Whether the interface is a veth whose other end is in another namespace.
    pub local: bool,
}

/// What a worker asks to be told about, and goes on being told until it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// The interface by which datagrams of `peer` to `local` come in. The program is attached to it.
    Ingress {
        /// The source.
        peer: IpAddr,
        /// Our address.
        local: IpAddr,
    },
    /// The way from `local` to `peer`.
    Hop {
        /// The viewer.
        peer: IpAddr,
        /// Our address.
        local: IpAddr,
    },
}

/// The answer to a [`Want`], repeated whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To [`Want::Ingress`].
    Ingress(Result<Ingress, UserReason>),
    /// To [`Want::Hop`].
    Hop(Result<Hop, UserReason>),
}
