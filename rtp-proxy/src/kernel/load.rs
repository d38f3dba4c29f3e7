//! Loading the kernel programs: object in, verified programs out.

use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use msm_fastpath::limits;
use tracing::warn;

use super::pins::Pins;
use super::tables::{map_data, name};

/// Name of the program for ingress by TCX or tc.
pub const TCX_INGRESS: &str = "tcx_ingress";

/// Name of the program that puts a frame in at an interface.
const SELF_TEST: &str = "self_test";

/// Why the kernel programs are not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The proxy was built without them.
    #[error("this proxy was built without kernel programs; `cargo xtask setup` installs the toolchain")]
    NotBuilt,
    /// The object does not parse, or its maps could not be created.
    #[error("kernel object: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// The object lacks a program that this proxy expects.
    #[error("kernel object has no program {program} of the expected type")]
    Program {
        /// Its name.
        program: &'static str,
    },
    /// The kernel refused a program; the source carries the verifier's log.
    #[error("loading {program}: {source}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// The object lacks a map that this proxy expects.
    #[error("kernel object has no map {map} of the expected type")]
    Map {
        /// Its name.
        map: &'static str,
    },
}

/// How much the maps hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Flows: tracks that arrive by UDP.
    pub flows: u32,
    /// Legs: tracks of viewers.
    pub legs: u32,
    /// Media addresses of ours.
    pub ports: u32,
}

impl Capacity {
    /// Two tracks of each stream, and what is kept for sources that hold little; eight slots of each track: four
    /// viewers, who move to a larger group when a fifth comes. Never less than by default.
    pub fn for_streams(streams: u32) -> Self {
        let usual = Self::default();
        Self {
            flows: usual.flows.max(streams.saturating_mul(5) / 2),
            legs: usual.legs.max(streams.saturating_mul(16)),
            ports: usual.ports,
        }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self { flows: limits::FLOWS, legs: limits::LEGS, ports: limits::PORTS }
    }
}

/// Loaded programs and their maps. Dropping it detaches and unloads everything that is not pinned.
#[derive(Debug)]
pub struct Kernel {
    pub(super) ebpf: Ebpf,
}

impl Kernel {
    /// Loads the ingress program of `object` (usually [`super::OBJECT`]), on maps of `capacity`; with `pins` on
    /// the maps that are pinned there, whatever their capacity.
    ///
    /// # Errors
    /// [`LoadError`], with the verifier's log where the program was refused.
    pub fn load_with(
        object: Option<&[u8]>,
        capacity: Capacity,
        pins: Option<&Pins>,
    ) -> Result<Self, LoadError> {
        let object = object.ok_or(LoadError::NotBuilt)?;
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (map, entries) in [
            (name::FLOWS, capacity.flows),
            // One more than there are flows: the self-test's.
            (name::FLOW_STATS, capacity.flows.saturating_add(1)),
            (name::LEGS, capacity.legs),
            (name::GATES, capacity.legs),
            (name::LEG_STATS, capacity.legs),
            (name::PORTS, capacity.ports),
        ] {
            loader.map_max_entries(map, entries);
        }
        if let Some(pins) = pins {
            for map in name::ALL {
                loader.map_pin_path(map, pins.object(map));
            }
        }
        let mut kernel = Self { ebpf: loader.load(object).map_err(Box::new)? };
        kernel
            .tcx_mut()?
            .load()
            .map_err(|source| LoadError::Refused { program: TCX_INGRESS, source: Box::new(source) })?;
        // Without it everything works, untried.
        if let Ok(self_test) = kernel.program_mut::<SchedClassifier>(SELF_TEST)
            && let Err(error) = self_test.load()
        {
            warn!(
                event = "kernel.self_test",
                error = super::hold::words(&error),
                "the kernel refuses the program of the self-test: interfaces are used untried"
            );
        }
        Ok(kernel)
    }

    /// The program that puts a frame in at an interface.
    ///
    /// # Errors
    /// [`LoadError::Program`].
    pub(super) fn self_test(&self) -> Result<&SchedClassifier, LoadError> {
        self.program(SELF_TEST)
    }

    /// Pins every map that another process needs to go on.
    ///
    /// # Errors
    /// From the kernel, in words.
    pub(super) fn pin_maps(&self, pins: &Pins) -> Result<(), String> {
        for map in name::ALL {
            let data = self.ebpf.map(map).and_then(map_data).ok_or_else(|| format!("no map {map}"))?;
            data.pin(pins.object(map)).map_err(|error| format!("{map}: {error}"))?;
        }
        Ok(())
    }

    /// The TCX program.
    ///
    /// # Errors
    /// [`LoadError::Program`].
    pub fn tcx(&self) -> Result<&SchedClassifier, LoadError> {
        self.program(TCX_INGRESS)
    }

    pub(super) fn tcx_mut(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        self.program_mut(TCX_INGRESS)
    }

    fn program<'a, P>(&'a self, program: &'static str) -> Result<&'a P, LoadError>
    where
        &'a P: TryFrom<&'a Program>,
    {
        self.ebpf.program(program).and_then(|p| p.try_into().ok()).ok_or(LoadError::Program { program })
    }

    fn program_mut<'a, P>(&'a mut self, program: &'static str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        self.ebpf.program_mut(program).and_then(|p| p.try_into().ok()).ok_or(LoadError::Program { program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::slots::Quota;

    #[test]
    fn the_tables_have_room_for_picture_and_sound_of_every_stream_beside_what_is_kept() {
        assert_eq!(Capacity::for_streams(1_024), Capacity::default());
        for streams in [1, 10_000, 100_000] {
            let capacity = Capacity::for_streams(streams);
            let free = |all: u32| (f64::from(all) * (1.0 - Quota::default().reserve)) as u32;
            assert!(free(capacity.flows) >= 2 * streams, "{capacity:?}");
            // Four viewers, and the group of two that they came from, which rests.
            assert!(free(capacity.legs) >= 2 * streams * (4 + 2), "{capacity:?}");
        }
    }
}
