//! The kernel half as user space sees it: the only code that talks to aya.
//!
//! This increment embeds the object, loads it and attaches it where a test asks for that. The data path of
//! `standalone` runs in user space; nothing here is called by it yet.

pub mod attach;
pub mod hop;
pub mod load;
pub mod maps;
pub mod table;

/// The compiled kernel programs, `None` in a proxy that was built without the toolchain for them.
#[cfg(msm_kernel_object)]
pub const OBJECT: Option<&'static [u8]> = Some(aya::include_bytes_aligned!(env!("MSM_KERNEL_OBJECT")));

/// The compiled kernel programs, `None` in a proxy that was built without the toolchain for them.
#[cfg(not(msm_kernel_object))]
pub const OBJECT: Option<&'static [u8]> = None;
