//! The golden record of what kernel and user space share: `rtp-proxy-ebpf/abi.txt`.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use msm_fastpath::abi::LAYOUTS;
use msm_fastpath::{DropReason, PassReason};
use msm_tests::privilege::environment;

use crate::kernel;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../rtp-proxy-ebpf/abi.txt");

/// Set by `cargo xtask ebpf --bless`: writes the record instead of comparing.
const ENV_BLESS: &str = "MSM_ABI_BLESS";

/// Most instructions that the verifier may walk per program, over all paths. It gives up at 1,000,000; a
/// jump far above today's figure means that a loop or branch multiplied.
const BUDGETS: [(&str, u32); 3] = [("tcx_ingress", 32_768), ("xdp_ingress", 4_096), ("self_test", 64)];

#[test]
fn layouts_maps_and_budgets_equal_the_golden_record() -> Result<()> {
    let Some(kernel) = kernel("layouts_maps_and_budgets_equal_the_golden_record")? else {
        return Ok(());
    };
    let programs = [kernel.tcx()?.info()?, kernel.xdp()?.info()?, kernel.self_test()?.info()?];
    for (info, (name, budget)) in programs.iter().zip(BUDGETS) {
        assert_eq!(info.name_as_str(), Some(name));
        let verified = info.verified_instruction_count().context("the kernel counts since 5.16")?;
        eprintln!(
            "{name}: {verified} instructions verified of {budget}, {} bytes translated",
            info.size_translated().unwrap_or(0)
        );
        assert!(verified <= budget, "{name}: the verifier walked {verified} instructions of {budget}");
        assert_eq!(info.gpl_compatible(), Some(true), "{name}: its helpers are GPL-only");
    }
    let record = record(&programs)?;
    if environment(ENV_BLESS).is_some() {
        std::fs::write(GOLDEN, &record)?;
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    assert_eq!(
        record, golden,
        "kernel and user half of two releases may meet over pinned maps; if this change is meant, \
         `cargo xtask ebpf --bless` records it"
    );
    Ok(())
}

fn record(programs: &[ProgramInfo]) -> Result<String> {
    let mut text = String::from(
        "# What kernel and user space share. Written by `cargo xtask ebpf --bless`; a change is reviewed.\n",
    );
    for layout in LAYOUTS {
        writeln!(text, "\ntype {} size {} align {}", layout.name, layout.size, layout.align)?;
        for field in layout.fields {
            writeln!(text, "  {:>3} {:>3} {}", field.offset, field.size, field.name)?;
        }
    }
    writeln!(text)?;
    let mut ids: Vec<u32> = programs
        .iter()
        .map(ProgramInfo::map_ids)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut maps: Vec<String> = ids
        .into_iter()
        .map(|id| {
            let info = MapInfo::from_id(id)?;
            Ok(format!(
                "map {} {:?} key {} value {} entries {}\n",
                info.name_as_str().unwrap_or("?"),
                info.map_type()?,
                info.key_size(),
                info.value_size(),
                info.max_entries()
            ))
        })
        .collect::<Result<_>>()?;
    maps.sort();
    text.extend(maps);
    writeln!(text)?;
    for (name, budget) in BUDGETS {
        writeln!(text, "program {name} at most {budget} instructions verified")?;
    }
    writeln!(text)?;
    for reason in PassReason::ALL {
        writeln!(text, "pass {:>2} {reason}", reason.counter())?;
    }
    writeln!(text)?;
    for reason in DropReason::ALL {
        writeln!(text, "drop {:>2} {reason}", reason.index())?;
    }
    Ok(text)
}
