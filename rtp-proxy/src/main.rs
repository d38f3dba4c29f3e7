//! Arguments → `Config` → telemetry → `app::run`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use msm_runtime::telemetry;
use rtp_proxy::app::{self, Stop};
use rtp_proxy::config::{self, Cli, Config, Raw, Verb};

/// Usage errors, as shells and clap have it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.version {
        let _ = writeln!(std::io::stdout(), "{}", app::version());
        return ExitCode::SUCCESS;
    }
    match cli.verb {
        Some(Verb::Standalone(raw)) => standalone(*raw),
        None => ExitCode::from(USAGE),
    }
}

fn standalone(raw: Raw) -> ExitCode {
    let config = match Config::load(raw, config::environment()) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}\n\nrtp-proxy standalone --help says more.");
            return ExitCode::from(USAGE);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "rtp-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    telemetry::install(config.log_level.clone(), config.log_format).context("cannot start logging")?;
    app::run(config, Stop::Signals, |_| ())?;
    Ok(())
}
