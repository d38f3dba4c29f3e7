//! How an interface receives: three settings that together merge a burst of plain datagrams into one super-packet
//! before our program sees it, read and changed by ethtool and sysfs.
//!
//! What is to be changed is a value ([`steps`]), how it is done is behind [`Switch`], and [`perform`] undoes what
//! it did if it cannot do all of it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, mem};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use zerocopy::transmute;

/// One setting, in the order in which they are switched on: NAPI, which makes threads of itself, exists on a veth
/// only while it merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    /// Generic receive offload. On a veth it comes with a ring of its own beside the machine's backlog.
    Gro,
    /// Datagrams of local senders take that ring, and are merged although nobody here has a socket for them.
    UdpForwarding,
    /// The ring is read by a thread, which finds a burst and not a packet.
    Threaded,
}

impl Setting {
    const ALL: [Self; 3] = [Self::Gro, Self::UdpForwarding, Self::Threaded];

    /// As `ethtool -k` and sysfs have it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Gro => "rx-gro",
            Self::UdpForwarding => "rx-udp-gro-forwarding",
            Self::Threaded => "threaded",
        }
    }
}

/// All three, as they are or are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receive {
    gro: bool,
    udp_forwarding: bool,
    threaded: bool,
}

impl Receive {
    /// Bursts are merged.
    pub const MERGING: Self = Self { gro: true, udp_forwarding: true, threaded: true };

    fn get(self, setting: Setting) -> bool {
        match setting {
            Setting::Gro => self.gro,
            Setting::UdpForwarding => self.udp_forwarding,
            Setting::Threaded => self.threaded,
        }
    }

    fn get_mut(&mut self, setting: Setting) -> &mut bool {
        match setting {
            Setting::Gro => &mut self.gro,
            Setting::UdpForwarding => &mut self.udp_forwarding,
            Setting::Threaded => &mut self.threaded,
        }
    }

    /// For a record: `rx-gro:off,rx-udp-gro-forwarding:off,threaded:off`.
    pub fn to_text(self) -> String {
        let one = |setting| format!("{}:{}", Setting::as_str(setting), on_off(self.get(setting)));
        Setting::ALL.map(one).join(",")
    }

    /// What [`Receive::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut receive = Self { gro: false, udp_forwarding: false, threaded: false };
        for setting in Setting::ALL {
            let mut words = text.split(',').filter_map(|word| word.split_once(':'));
            *receive.get_mut(setting) = match words.find(|(name, _)| *name == setting.as_str())?.1 {
                "on" => true,
                "off" => false,
                _ => return None,
            };
        }
        Some(receive)
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) setting: Setting,
    pub(super) on: bool,
}

/// What leads from `now` to `wanted`: first what goes off, from the thread back to the ring, then what goes on.
pub(super) fn steps(now: Receive, wanted: Receive) -> Vec<Step> {
    let differs = |setting: &Setting| now.get(*setting) != wanted.get(*setting);
    let step = |setting: Setting| Step { setting, on: wanted.get(setting) };
    let all = Setting::ALL.into_iter().filter(differs).map(step);
    let mut steps: Vec<Step> = all.clone().filter(|step| !step.on).rev().collect();
    steps.extend(all.filter(|step| step.on));
    steps
}

/// Somewhere to change a setting.
pub(super) trait Switch {
    /// # Errors
    /// The answer, in words.
    fn set(&mut self, step: Step) -> Result<(), String>;
}

/// Does every step, or none.
///
/// # Errors
/// Why one of them failed.
pub(super) fn perform(steps: &[Step], switch: &mut impl Switch) -> Result<(), String> {
    for (done, step) in steps.iter().enumerate() {
        if let Err(why) = switch.set(*step) {
            for step in steps.iter().take(done).rev() {
                switch.set(Step { on: !step.on, ..*step }).ok();
            }
            return Err(why);
        }
    }
    Ok(())
}

/// Does as many of the steps as can be done.
///
/// # Errors
/// What is left, in words.
pub(super) fn perform_all(steps: &[Step], switch: &mut impl Switch) -> Result<(), String> {
    let left: Vec<String> = steps.iter().filter_map(|step| switch.set(*step).err()).collect();
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
// Of linux/ethtool.h.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a feature's name.
const NAME: usize = 32;
/// More features than any kernel has.
const MOST_FEATURES: u32 = 4_096;
/// What was on its way into the ring when datagrams stopped to take it has been read after this time.
const DRAINED: Duration = Duration::from_millis(2);

/// An interface of the calling thread's network namespace.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    sysfs: PathBuf,
    socket: OwnedFd,
    gro: u32,
    udp_forwarding: u32,
    /// Words of the kernel's feature sets.
    words: usize,
}

impl Device {
    /// # Errors
    /// What is missing, in words.
    pub(super) fn open(ifindex: u32, name: &str) -> Result<Self, String> {
        let found = if_nametoindex(name).map_err(|error| format!("{name}: {error}"))?;
        if found != ifindex {
            return Err(format!("{name} is another interface now"));
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)
            .map_err(|error| format!("a socket for ethtool: {error}"))?;
        let sysfs = Path::new("/sys/class/net").join(name);
        let mut device = Self { name: name.to_owned(), sysfs, socket, gro: 0, udp_forwarding: 0, words: 0 };
        device.find_features()?;
        Ok(device)
    }

    /// All settings as they are.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(super) fn read(&self, mac: Option<[u8; 6]>) -> Result<Receive, String> {
        self.is_shown(mac)?;
        let mut block = vec![0; 2 + 4 * self.words];
        self.ethtool(&mut block, [ETHTOOL_GFEATURES, self.words as u32])?;
        // Available, wanted, active, never changed: what is wanted is what somebody set.
        let wanted = |feature: u32| {
            let word = block.get(2 + 4 * (feature / 32) as usize + 1).copied().unwrap_or(0);
            word >> (feature % 32) & 1 == 1
        };
        let threaded = fs::read_to_string(self.threaded()).map_err(|error| self.why(&error))?;
        Ok(Receive {
            gro: wanted(self.gro),
            udp_forwarding: wanted(self.udp_forwarding),
            threaded: threaded.trim() != "0",
        })
    }

    fn threaded(&self) -> PathBuf {
        self.sysfs.join(Setting::Threaded.as_str())
    }

    fn why(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.threaded().display())
    }

    /// sysfs shows the interfaces of the network namespace that it was mounted in, which need not be ours.
    fn is_shown(&self, mac: Option<[u8; 6]>) -> Result<(), String> {
        let read = |file: &str| fs::read_to_string(self.sysfs.join(file)).unwrap_or_default();
        let index = if_nametoindex(self.name.as_str()).unwrap_or(0);
        let shown = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        if read("ifindex").trim() != index.to_string()
            || shown.is_some_and(|mac| read("address").trim() != mac)
        {
            return Err(format!(
                "{} is not the {} of this network namespace",
                self.sysfs.display(),
                self.name
            ));
        }
        Ok(())
    }

    /// Which bits of the kernel's feature sets are ours.
    fn find_features(&mut self) -> Result<(), String> {
        // The mask of sets is eight bytes behind the command and a reserved word; the count follows.
        let [mask_a, mask_b]: [u32; 2] = transmute!(1_u64 << ETH_SS_FEATURES);
        let mut info = [0; 5];
        self.ethtool(&mut info, [ETHTOOL_GSSET_INFO, 0, mask_a, mask_b])?;
        let count = info[4].min(MOST_FEATURES);
        let mut names = vec![0; 3 + count as usize * NAME / size_of::<u32>()];
        self.ethtool(&mut names, [ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count])?;
        let bytes: Vec<u8> = names.iter().skip(3).flat_map(|word| word.to_ne_bytes()).collect();
        let find = |setting: Setting| {
            let named =
                |name: &[u8]| name.split(|byte| *byte == 0).next() == Some(setting.as_str().as_bytes());
            let found = bytes.chunks_exact(NAME).position(named).map(|index| index as u32);
            found.ok_or_else(|| format!("this kernel has no {}", setting.as_str()))
        };
        self.gro = find(Setting::Gro)?;
        self.udp_forwarding = find(Setting::UdpForwarding)?;
        self.words = count.div_ceil(32) as usize;
        Ok(())
    }

    /// One request: `head` are its first words, the answer is in `block`.
    fn ethtool<const N: usize>(&self, block: &mut [u32], head: [u32; N]) -> Result<(), String> {
        let words = |error: io::Error| format!("ethtool of {}: {error}", self.name);
        let name = CString::new(self.name.as_str()).map_err(|error| words(error.into()))?;
        for (word, head) in block.iter_mut().zip(head) {
            *word = head;
        }
        // SAFETY: all zero is a valid ifreq: integers, and a null pointer in a union.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes().iter().take(libc::IFNAMSIZ - 1)) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = block.as_mut_ptr().cast();
        // SAFETY: the name ends with a zero; the kernel writes into `block` no more than its head asks for: a
        // set's count where the mask names one set, so many names, so many words of features. Callers made it
        // that long. Both live until the call is over.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        // Beside an error the kernel tells of wishes that it could not fulfil: whoever sets looks himself.
        if answer < 0 { Err(words(io::Error::last_os_error())) } else { Ok(()) }
    }
}

impl Switch for Device {
    fn set(&mut self, step: Step) -> Result<(), String> {
        let feature = match step.setting {
            Setting::Threaded => {
                let text = if step.on { "1" } else { "0" };
                return fs::write(self.threaded(), text).map_err(|error| self.why(&error));
            }
            Setting::Gro => self.gro,
            Setting::UdpForwarding => self.udp_forwarding,
        };
        if step.setting == Setting::Gro && !step.on {
            // The ring goes, with what is in it.
            std::thread::sleep(DRAINED);
        }
        let mut block = vec![0; 2 + 2 * self.words];
        let (valid, bit) = (2 + 2 * (feature / 32) as usize, 1 << (feature % 32));
        if let Some([may, is]) = block.get_mut(valid..valid + 2) {
            (*may, *is) = (bit, if step.on { bit } else { 0 });
        }
        self.ethtool(&mut block, [ETHTOOL_SFEATURES, self.words as u32])?;
        let mut found = vec![0_u32; 2 + 4 * self.words];
        self.ethtool(&mut found, [ETHTOOL_GFEATURES, self.words as u32])?;
        let active = found.get(2 + 4 * (feature / 32) as usize + 2).is_some_and(|word| word & bit != 0);
        if active != step.on {
            return Err(format!(
                "{} does not let {} be {}",
                self.name,
                step.setting.as_str(),
                on_off(step.on)
            ));
        }
        Ok(())
    }
}

/// What this machine lacks to merge the bursts of any veth, `None` if nothing.
pub(crate) fn lacking() -> Option<String> {
    const LOOPBACK: &str = "lo";
    let index = if_nametoindex(LOOPBACK).ok()?;
    let device = match Device::open(index, LOOPBACK) {
        Ok(device) => device,
        Err(why) => return Some(why),
    };
    if let Err(why) = device.read(None) {
        return Some(why);
    }
    // Opening changes nothing, and asks for the right to write.
    fs::OpenOptions::new().write(true).open(device.threaded()).err().map(|error| device.why(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Receive = Receive { gro: false, udp_forwarding: false, threaded: false };
    const GRO: Receive = Receive { gro: true, ..OFF };

    fn step(setting: Setting, on: bool) -> Step {
        Step { setting, on }
    }

    #[test]
    fn settings_are_switched_on_from_the_ring_to_the_thread_and_off_the_other_way() {
        use Setting::{Gro, Threaded, UdpForwarding};
        let on = steps(OFF, Receive::MERGING);
        assert_eq!(on, [step(Gro, true), step(UdpForwarding, true), step(Threaded, true)]);
        let off = steps(Receive::MERGING, OFF);
        assert_eq!(off, [step(Threaded, false), step(UdpForwarding, false), step(Gro, false)]);
        assert_eq!(steps(Receive::MERGING, GRO), off[..2], "what was on before stays on");
        assert_eq!(steps(GRO, GRO), []);
        let threaded = Receive { threaded: true, ..OFF };
        assert_eq!(steps(threaded, GRO), [step(Threaded, false), step(Gro, true)]);
    }

    /// Refuses one setting.
    struct Model {
        is: Receive,
        refuses: Option<Setting>,
    }

    impl Switch for Model {
        fn set(&mut self, step: Step) -> Result<(), String> {
            if self.refuses == Some(step.setting) {
                return Err(format!("no {}", step.setting.as_str()));
            }
            *self.is.get_mut(step.setting) = step.on;
            Ok(())
        }
    }

    #[test]
    fn what_was_switched_is_switched_back_when_the_rest_is_refused() {
        for refuses in Setting::ALL {
            let mut model = Model { is: OFF, refuses: Some(refuses) };
            assert!(perform(&steps(OFF, Receive::MERGING), &mut model).is_err());
            assert_eq!(model.is, OFF, "{refuses:?}");
        }
        let mut model = Model { is: OFF, refuses: None };
        assert_eq!(perform(&steps(OFF, Receive::MERGING), &mut model), Ok(()));
        assert_eq!(model.is, Receive::MERGING);
    }

    #[test]
    fn what_can_be_restored_is_restored_although_something_is_refused() {
        let mut model = Model { is: Receive::MERGING, refuses: Some(Setting::UdpForwarding) };
        let left = perform_all(&steps(Receive::MERGING, OFF), &mut model).unwrap_err();
        assert_eq!(left, "no rx-udp-gro-forwarding");
        assert_eq!(model.is, Receive { udp_forwarding: true, ..OFF });
    }

    #[test]
    fn settings_read_back_as_they_were_written() {
        for receive in [OFF, GRO, Receive::MERGING, Receive { threaded: true, ..GRO }] {
            assert_eq!(Receive::from_text(&receive.to_text()), Some(receive));
        }
        assert_eq!(Receive::from_text("rx-gro:on"), None);
        assert_eq!(Receive::from_text("rx-gro:on,rx-udp-gro-forwarding:maybe,threaded:on"), None);
    }

    #[test]
    fn the_features_of_an_interface_are_found_by_name() {
        let index = if_nametoindex("lo").unwrap();
        let device = Device::open(index, "lo").unwrap();
        assert_ne!(device.gro, device.udp_forwarding);
        assert!(Device::open(index + 1, "lo").is_err(), "another interface has that name");
    }
}
