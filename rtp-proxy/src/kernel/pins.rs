//! What outlives the process: the directory under bpffs in which maps, programs, links and the records of
//! what else was changed are pinned.
//!
//! ```text
//! <bpffs>/msm/<network namespace>/<instance>/
//!     netns -> net:[4026531840]           the same namespace as other tools show it
//!     <ABI>/FLOWS ...                     maps
//!     <ABI>/tcx_ingress                   the program
//!     <ABI>/link-3                        its TCX link on the interface with this index
//!     <ABI>/interface-3 -> name=eth0 ...  record of what else was changed there
//! ```
//!
//! A record is a symbolic link, because bpffs holds no ordinary files: it disappears with the pins it
//! belongs to, and a reboot takes all of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::{fs, io};

use msm_fastpath::abi::LAYOUTS;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Uid;

use super::device::Receive;
use super::hop::Rung;
use super::object::detach_link;
use super::{privileges, tables};

/// Where bpffs usually is.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Raised when entries of the same layout mean something else.
const REVISION: u32 = 2;
/// Our folder there.
pub const FOLDER: &str = "msm";
const NETNS: &str = "netns";
pub(super) const LINK: &str = "link-";
const RECORD: &str = "interface-";
/// Starts the name of the abstract socket that is the lock of an instance.
const LOCK: &str = "msm/rtp-proxy/kernel/";

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// There is no bpffs, and none can be mounted.
    #[error("no bpffs at {path} and mounting it failed ({source}); run: sudo mount -t bpf bpf {path}")]
    NoBpffs {
        /// Where it was expected.
        path: PathBuf,
        /// The kernel's answer.
        source: nix::Error,
    },
    /// A directory cannot be made or read.
    #[error("{path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has this instance.
    #[error(
        "another rtp-proxy (instance {instance}) uses the fast path of this network namespace: end it, or give \
         this one other --rtp-ports; sudo ss -xap | grep {name}{instance} names the process",
        name = LOCK
    )]
    Held {
        /// Its name.
        instance: String,
    },
    /// Whether another process has this instance cannot be found out.
    #[error("whether another rtp-proxy (instance {instance}) runs cannot be found out: {source}")]
    Lock {
        /// Its name.
        instance: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    let path = path.to_owned();
    move |source| PinsError::Io { path, source }
}

/// Eight bytes of FNV-1a, in hexadecimal, over every shared type's layout and [`REVISION`].
pub fn abi() -> String {
    let mut text = format!("{REVISION}");
    for layout in LAYOUTS {
        let _ = write!(text, ";{} {} {}", layout.name, layout.size, layout.align);
        for field in layout.fields {
            let _ = write!(text, ",{} {} {}", field.name, field.offset, field.size);
        }
    }
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Whether a path lies on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes sure that `path` is a BPF file system; mounts one where it is not and that is allowed.
///
/// # Errors
/// [`PinsError::NoBpffs`], with the command to run.
pub fn ensure_bpffs(path: &Path) -> Result<(), PinsError> {
    if is_bpffs(path) {
        return Ok(());
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|source| PinsError::NoBpffs { path: path.to_owned(), source })
}

/// Inode of the calling thread's network namespace, as `lsns` and `/proc/*/ns/net` show it.
fn netns_inode() -> String {
    fs::read_link("/proc/thread-self/ns/net")
        .map_or_else(|_| "net:[0]".to_owned(), |p| p.display().to_string())
}

/// Name of the calling thread's network namespace that no later namespace gets: its cookie; its inode on
/// kernels before 5.14.
pub fn netns() -> String {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let cookie_known = UnixDatagram::unbound().is_ok_and(|socket| {
        // SAFETY: `cookie` and `len` are valid for writes and `len` says how large `cookie` is; the
        // descriptor is open for the whole call.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        rc == 0
    });
    if cookie_known {
        return cookie.to_string();
    }
    netns_inode().trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
}

/// The right to use an instance's pins; the kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _name: UnixDatagram,
}

impl Lock {
    /// Takes the instance of this name in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`PinsError::Held`] while another process has it; [`PinsError::Lock`] if the kernel has no socket for us.
    pub fn take(instance: &str) -> Result<Self, PinsError> {
        let refused = |source: io::Error| {
            let instance = instance.to_owned();
            match source.kind() {
                io::ErrorKind::AddrInUse => PinsError::Held { instance },
                _ => PinsError::Lock { instance, source },
            }
        };
        let name = SocketAddr::from_abstract_name(format!("{LOCK}{instance}")).map_err(refused)?;
        Ok(Self { _name: UnixDatagram::bind_addr(&name).map_err(refused)? })
    }
}

/// What was changed on an interface beside its TCX link, so that it can be changed back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Name of the interface when the record was written.
    pub name: String,
    /// How the program is attached.
    pub rung: Rung,
    /// The clsact qdisc is ours.
    pub clsact: bool,
    /// How the interface received before its bursts were merged, if they are.
    pub before: Option<Receive>,
}

impl Record {
    fn to_text(&self) -> String {
        let mut text = format!("name={} rung={}", self.name, self.rung.as_str());
        if self.clsact {
            text.push_str(" clsact=ours");
        }
        if let Some(before) = self.before {
            let _ = write!(text, " before={}", before.to_text());
        }
        text
    }

    fn from_text(text: &str) -> Option<Self> {
        let fields: BTreeMap<&str, &str> =
            text.split(' ').filter_map(|field| field.split_once('=')).collect();
        let rung = [Rung::Tcx, Rung::Tc, Rung::User]
            .into_iter()
            .find(|rung| fields.get("rung") == Some(&rung.as_str()))?;
        let name = (*fields.get("name")?).to_owned();
        let before = fields.get("before").and_then(|text| Receive::from_text(text));
        Some(Self { name, rung, clsact: fields.contains_key("clsact"), before })
    }
}

/// The pins of one instance with one ABI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    path: PathBuf,
}

impl Pins {
    /// Pins of `instance` and `abi` in the calling thread's network namespace. Nothing is made yet.
    pub fn plan(bpffs: &Path, instance: &str, abi: &str) -> Self {
        Self { path: bpffs.join(FOLDER).join(netns()).join(instance).join(abi) }
    }

    /// Whether [`Pins::make`] may do what it does. Nothing is made.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_make(&self, bpffs: &Path) -> Result<(), String> {
        let shown = bpffs.display();
        if !is_bpffs(bpffs) {
            let mounts = privileges::may_mount().then_some(());
            return mounts.ok_or_else(|| format!("no BPF file system at {shown}"));
        }
        // Whoever may not look into a directory takes what is in it for missing, and is stopped there too.
        let nearest = self.path.ancestors().find(|directory| directory.is_dir());
        match nearest.filter(|directory| !privileges::may_write(directory)) {
            None => Ok(()),
            Some(directory) => {
                let (user, directory) = (privileges::user(), directory.display());
                Err(format!("{user} may not write to {directory}"))
            }
        }
    }

    /// Makes the directory, and bpffs around it where there is none and that is allowed.
    ///
    /// # Errors
    /// [`PinsError`].
    pub fn make(&self, bpffs: &Path) -> Result<(), PinsError> {
        ensure_bpffs(bpffs)?;
        fs::create_dir_all(&self.path).map_err(at(&self.path))?;
        let Some(instance) = self.path.parent() else { return Ok(()) };
        match symlink(netns_inode(), instance.join(NETNS)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(instance)(error)),
            _ => Ok(()),
        }
    }

    /// Whether every one of `names` is pinned; `None` if only some are.
    pub fn has_all(&self, names: &[&str]) -> Option<bool> {
        let there = names.iter().filter(|name| self.object(name).exists()).count();
        if there == names.len() { Some(true) } else { (there == 0).then_some(false) }
    }

    /// Whether there is more than records of what could not be taken back.
    pub fn has_maps(&self) -> bool {
        self.has_all(&tables::name::ALL) != Some(false)
    }

    /// Pins as they are found, nothing is made.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a map or program.
    pub fn object(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Path of the link on an interface.
    pub fn link(&self, ifindex: u32) -> PathBuf {
        self.path.join(format!("{LINK}{ifindex}"))
    }

    /// Interfaces that have a pinned link.
    pub fn links(&self) -> Vec<u32> {
        self.numbered(LINK)
    }

    fn numbered(&self, prefix: &str) -> Vec<u32> {
        let names = names(&self.path);
        let mut found: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect();
        found.sort_unstable();
        found
    }

    /// Every record, by the interface's index.
    pub fn records(&self) -> BTreeMap<u32, Record> {
        let read = |ifindex| {
            let text = fs::read_link(self.record(ifindex)).ok()?;
            Some((ifindex, Record::from_text(text.to_str()?)?))
        };
        self.numbered(RECORD).into_iter().filter_map(read).collect()
    }

    fn record(&self, ifindex: u32) -> PathBuf {
        self.path.join(format!("{RECORD}{ifindex}"))
    }

    /// Writes or replaces the record of an interface.
    ///
    /// # Errors
    /// [`PinsError::Io`].
    pub fn put_record(&self, ifindex: u32, record: &Record) -> Result<(), PinsError> {
        let path = self.record(ifindex);
        // bpffs takes no dot in a name.
        let next = self.path.join("next");
        fs::remove_file(&next).ok();
        symlink(record.to_text(), &next).map_err(at(&next))?;
        fs::rename(&next, &path).map_err(at(&path))
    }

    /// Removes the record of an interface.
    pub fn remove_record(&self, ifindex: u32) {
        fs::remove_file(self.record(ifindex)).ok();
    }

    /// Removes every pin and the directory, and the directories above that are empty then. Links go first:
    /// nothing forwards on the strength of maps that are going. The records of the interfaces `keep` stay, and the
    /// directories with them.
    ///
    /// # Errors
    /// [`PinsError::Io`].
    pub fn remove(&self, keep: &[u32]) -> Result<(), PinsError> {
        for ifindex in self.links() {
            let path = self.link(ifindex);
            // A link whose interface is gone has nothing to be detached from.
            detach_link(&path).ok();
            fs::remove_file(&path).map_err(at(&path))?;
        }
        let kept: Vec<PathBuf> = keep.iter().map(|ifindex| self.record(*ifindex)).collect();
        for path in names(&self.path).into_iter().map(|name| self.path.join(name)) {
            if !kept.contains(&path) {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        if kept.iter().any(|path| path.is_symlink()) {
            return Ok(());
        }
        fs::remove_dir(&self.path).map_err(at(&self.path))?;
        let Some(instance) = self.path.parent() else { return Ok(()) };
        if names(instance) == [NETNS] {
            fs::remove_file(instance.join(NETNS)).ok();
            // Each only if it is empty; what is not ours stays, and so does the folder that root made for a user.
            let ours = |directory: &Path| {
                let is_folder = directory.file_name().is_some_and(|name| name == FOLDER);
                let owner = fs::metadata(directory).map(|metadata| metadata.uid());
                !is_folder || owner.is_ok_and(|owner| owner == Uid::effective().as_raw())
            };
            instance
                .ancestors()
                .take(3)
                .all(|directory| ours(directory) && fs::remove_dir(directory).is_ok());
        }
        Ok(())
    }
}

/// Whether the process that has an instance runs, as seen from the same network namespace.
pub fn is_running(instance: &str) -> bool {
    Lock::take(instance).is_err()
}

/// Pins of one instance as they lie there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name of the instance.
    pub instance: String,
    /// ABI that they were written with.
    pub abi: String,
    /// The pins.
    pub pins: Pins,
}

/// Whether [`find`] sees what is there.
///
/// # Errors
/// Why not and what to do, in words, where this user may not look.
pub fn may_look(bpffs: &Path) -> Result<(), String> {
    let namespace = bpffs.join(FOLDER).join(netns());
    match fs::read_dir(&namespace) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let user = privileges::user();
            Err(format!("{user} may not look into {}; run this as root", namespace.display()))
        }
        _ => Ok(()),
    }
}

/// Every instance with pins in the calling thread's network namespace.
pub fn find(bpffs: &Path) -> Vec<Found> {
    found_in(&bpffs.join(FOLDER).join(netns()))
}

fn found_in(namespace: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for instance in names(namespace) {
        for abi in names(&namespace.join(&instance)).into_iter().filter(|name| name != NETNS) {
            let pins = Pins::at(namespace.join(&instance).join(&abi));
            found.push(Found { instance: instance.clone(), abi, pins });
        }
    }
    found
}

/// Instances whose network namespace is gone: nothing can be attached there any more. None where we cannot see
/// every process: what looks gone may be alive.
pub fn orphans(bpffs: &Path) -> Vec<Found> {
    let folder = bpffs.join(FOLDER);
    let ours = netns();
    let mut alive = None;
    let mut found = Vec::new();
    for namespace in names(&folder).into_iter().filter(|name| *name != ours) {
        for of_instance in found_in(&folder.join(&namespace)) {
            let named = folder.join(&namespace).join(&of_instance.instance).join(NETNS);
            let Ok(inode) = fs::read_link(named) else { continue };
            let Some(alive) = alive.get_or_insert_with(namespaces) else { return Vec::new() };
            if !alive.contains(&inode.display().to_string()) {
                found.push(of_instance);
            }
        }
    }
    found
}

/// Inodes of the network namespaces that a process is in or that are mounted. `None` if we may not see all of them.
fn namespaces() -> Option<Vec<String>> {
    if !privileges::may_see_processes() {
        return None;
    }
    let processes = names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok());
    let mut inodes: Vec<String> = processes
        .filter_map(|process| fs::read_link(format!("/proc/{process}/ns/net")).ok())
        .map(|inode| inode.display().to_string())
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    inodes.extend(mounts.split_whitespace().filter(|word| word.starts_with("net:[")).map(str::to_owned));
    inodes.sort_unstable();
    inodes.dedup();
    Some(inodes)
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for record in [
            Record { name: "eth0".to_owned(), rung: Rung::Tcx, clsact: false, before: None },
            Record { name: "veth12ab".to_owned(), rung: Rung::Tc, clsact: true, before: None },
            Record { name: "v".to_owned(), rung: Rung::Tcx, clsact: false, before: Some(Receive::MERGING) },
        ] {
            assert_eq!(Record::from_text(&record.to_text()), Some(record));
        }
        assert_eq!(Record::from_text("name=eth0 rung=warp"), None);
        assert_eq!(Record::from_text(""), None);
    }

    #[test]
    fn one_process_at_a_time_has_an_instance() {
        let name = format!("test-{}", std::process::id());
        let first = Lock::take(&name).unwrap();
        let refused = Lock::take(&name).unwrap_err();
        assert!(matches!(refused, PinsError::Held { .. }));
        let text = refused.to_string();
        assert!(text.contains("--rtp-ports") && text.contains(&format!("grep {LOCK}{name}")), "{text}");
        drop(first);
        assert!(Lock::take(&name).is_ok());
    }

    #[test]
    fn an_instance_that_the_kernel_refuses_for_another_reason_is_nobodys() {
        // Longer than the name of a socket may be.
        assert!(matches!(Lock::take(&"8".repeat(200)), Err(PinsError::Lock { .. })));
    }

    #[test]
    fn the_abi_name_is_the_same_every_time_and_fits_a_file_name() {
        assert_eq!(abi(), abi());
        assert!(abi().len() == 16 && abi().chars().all(|c| c.is_ascii_hexdigit()));
    }
}
