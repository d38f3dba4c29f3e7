//! Arguments → `Config` → telemetry → `app::run`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use msm_runtime::telemetry;
use rtp_proxy::app::{self, Stop};
use rtp_proxy::commands::{self, Outcome};
use rtp_proxy::config::args::BpffsArgs;
use rtp_proxy::config::{self, Cli, Config, ConfigError, Raw, Verb};
use rtp_proxy::kernel::pins;
use sd_notify::NotifyState;

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
        Some(Verb::Status(args)) => match config::admin_address(args.admin.as_deref()) {
            Ok(admin) => finish(&commands::status::run(admin, &bpffs(&args.bpffs))),
            Err(error) => usage(&error, "status"),
        },
        Some(Verb::Doctor(args)) => finish(&commands::doctor::run(&bpffs(&args))),
        Some(Verb::Uninstall(args)) => finish(&commands::uninstall::run(&bpffs(&args))),
        None => ExitCode::from(USAGE),
    }
}

fn bpffs(args: &BpffsArgs) -> PathBuf {
    args.bpffs.as_deref().unwrap_or(pins::BPFFS).into()
}

fn finish(outcome: &Outcome) -> ExitCode {
    let _ = write!(std::io::stdout(), "{}", outcome.text);
    if outcome.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage(error: &ConfigError, verb: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{error}\n\nrtp-proxy {verb} --help says more.");
    ExitCode::from(USAGE)
}

fn standalone(raw: Raw) -> ExitCode {
    let config = match Config::load(raw, config::environment()) {
        Ok(config) => config,
        Err(error) => return usage(&error, "standalone"),
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
    app::run(config, Stop::Signals, |_| tell_service_manager())?;
    Ok(())
}

/// Under systemd `systemctl start` waits for this; elsewhere nobody asks.
fn tell_service_manager() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(
            event = "notify.failed",
            "the service manager does not hear that all is ready: {error}"
        );
    }
}
