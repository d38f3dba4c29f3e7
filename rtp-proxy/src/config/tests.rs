use clap::CommandFactory as _;
use clap::Parser as _;

use super::*;

fn raw(args: &[&str]) -> Raw {
    let line = ["rtp-proxy", "standalone"].iter().chain(args);
    match Cli::try_parse_from(line).unwrap().verb {
        Some(Verb::Standalone(raw)) => *raw,
        other => panic!("{other:?}"),
    }
}

fn load(args: &[&str]) -> Result<Config, ConfigError> {
    Config::load(raw(args), BTreeMap::new())
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn secret(line: &str, mode: u32) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), line).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn nothing_given_is_the_documented_zero_configuration() {
    let config = load(&[]).unwrap();
    assert_eq!(config.rtsp.to_string(), "[::]:8554");
    assert_eq!(config.admin.to_string(), "127.0.0.1:8081");
    assert_eq!(config.rtp_ports, 8060..=8187);
    assert_eq!(config.plane.times.session_advertised, Duration::from_secs(55));
    assert_eq!(config.plane.times.session_enforced, Duration::from_secs(60));
    assert_eq!(config.drain, Duration::ZERO);
    assert!(config.warnings.is_empty());
}

#[test]
fn good_values_arrive() {
    let config = load(&[
        "--rtsp",
        "127.0.0.1:0",
        "--admin",
        ":9000",
        "--rtp-ports",
        "9000-9101",
        "--session-timeout",
        "30s",
        "--linger",
        "500ms",
        "--max-connections",
        "10",
        "--workers",
        "2",
        "--drain",
        "25s",
        "--log-level",
        "info,rtp_proxy=debug",
        "--log-format",
        "json",
        "--pull",
        "a/b=rtsp://10.0.0.1/x",
        "--pull-transport",
        "a/b=tcp",
        "--pull",
        "c=RTSP://h:8554",
    ])
    .unwrap();
    assert_eq!(config.rtsp.port(), 0);
    assert_eq!(config.admin.to_string(), "[::]:9000");
    assert_eq!(config.rtp_ports, 9000..=9101);
    assert_eq!(config.plane.times.session_advertised, Duration::from_secs(25));
    assert_eq!(config.plane.times.linger, Duration::from_millis(500));
    assert_eq!((config.max_connections, config.workers), (10, Some(2)));
    assert_eq!(config.drain, Duration::from_secs(25));
    assert_eq!(config.log_format, LogFormat::Json);
    let pulls: Vec<_> = config.plane.pulls.iter().map(|p| (p.name.as_str(), p.transport)).collect();
    assert_eq!(pulls, [("a/b", PullTransport::Tcp), ("c", PullTransport::Auto)]);
    assert!(config.warnings.iter().any(|w| w.contains("admin listener")), "{:?}", config.warnings);
}

#[test]
fn a_bad_value_is_named_with_its_key_and_a_value_that_would_do() {
    for (args, key, fix) in [
        (["--rtsp", "8554"], "--rtsp 8554", "[::]:8554"),
        (["--listen", "127.0.0.1"], "--rtsp 127.0.0.1", "127.0.0.1:8554"),
        (["--rtsp", "localhost:554"], "--rtsp localhost:554", "127.0.0.1:554"),
        (["--admin", "1.2.3.4:99999"], "--admin 1.2.3.4:99999", "1.2.3.4:8081"),
        (["--admin", "[::]:8554"], "--admin [::]:8554", "127.0.0.1:8081"),
        (["--rtp-ports", "8061-8187"], "--rtp-ports 8061-8187", "8062-8187"),
        (["--rtp-ports", "8060-8061"], "--rtp-ports 8060-8061", "8060-8187"),
        (["--rtp-ports", "8060"], "--rtp-ports 8060", "8060-8187"),
        (["--session-timeout", "30"], "--session-timeout 30", "30s"),
        (["--session-timeout", "1s"], "--session-timeout 1s", "10s"),
        (["--drain", "2h"], "--drain 2h", "2m"),
        (["--workers", "0"], "--workers 0", "write 1"),
        (["--max-connections", "many"], "--max-connections many", "1 to 1000000"),
        (["--log-level", "inof"], "--log-level inof", "write info"),
        (["--log-format", "jsno"], "--log-format jsno", "write json"),
        (["--pull", "cam1"], "--pull cam1", "NAME=rtsp://"),
        (["--pull", "cam 1=rtsp://h/x"], "--pull cam 1=", "cam-1"),
        (["--pull", "../x=rtsp://h/x"], "--pull ../x=", "call it"),
        (["--pull", "c=http://h/x"], "--pull c=http://h/x", "rtsp://h/x"),
        (["--pull", "c=10.0.0.1/x"], "--pull c=10.0.0.1/x", "rtsp://10.0.0.1/x"),
        (["--pull", "c=rtsp:///x"], "--pull c=rtsp:///x", "HOST"),
        (["--pull", "c=rtsp://169.254.169.254/x"], "--pull c=", "camera's address"),
        (["--pull-transport", "c=udp"], "--pull-transport c=udp", "add --pull c="),
        (["--credentials", "c=/nowhere"], "--credentials c=/nowhere", "add --pull c="),
        (["--allow-basic", "door"], "--allow-basic door", "add --pull door="),
        (["--user", "anna"], "--user anna", "NAME:FILE"),
        (["--user", "anna:/nowhere"], "--user anna:/nowhere", "create it"),
    ] {
        let error = load(&args).unwrap_err();
        assert_eq!(error.problems.len(), 1, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(key), "{args:?}: {text}");
        assert!(text.contains(fix), "{args:?}: {text}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let error = load(&[
        "--rtsp",
        "nowhere",
        "--drain",
        "1",
        "--log-level",
        "loud",
        "--pull",
        "x",
        "--pull",
        "front=rtsp://h/1",
        "--pull-transport",
        "frnt=udp",
        "--credentials",
        "front=/does/not/exist",
    ])
    .unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        keys,
        ["--rtsp", "--pull", "--pull-transport", "--credentials", "--drain", "--log-level"],
        "{error}"
    );
    assert!(error.to_string().contains("did you mean front?"), "{error}");
    assert_eq!(error.to_string().lines().count(), 6);
}

#[test]
fn the_environment_fills_what_the_command_line_leaves_open() {
    let vars = env(&[
        ("MSM_SESSION_TIMEOUT", "30s"),
        ("MSM_LINGER", "9s"),
        ("MSM_PULL", "a=rtsp://h/1 b=rtsp://h/2"),
        ("MSM_PULL_A", "admin:secret"),
    ]);
    let config = Config::load(raw(&["--linger", "1s"]), vars).unwrap();
    assert_eq!(config.plane.times.session_enforced, Duration::from_secs(30));
    assert_eq!(config.plane.times.linger, Duration::from_secs(1));
    assert_eq!(config.plane.pulls.len(), 2);
    let login = config.plane.pulls[0].credentials.as_ref().unwrap();
    assert_eq!((login.user(), login.password().expose()), ("admin", "secret"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn a_bad_variable_is_named_as_such_and_an_unknown_one_is_a_warning_with_the_nearest() {
    let error = Config::load(raw(&[]), env(&[("MSM_DRAIN", "soon")])).unwrap_err();
    assert!(error.to_string().starts_with("MSM_DRAIN soon"), "{error}");
    let config =
        Config::load(raw(&[]), env(&[("MSM_LINGR", "5s"), ("MSM_X_SERVICE_HOST", "10.0.0.1")])).unwrap();
    assert!(config.warnings[0].contains("did you mean MSM_LINGER?"), "{:?}", config.warnings);
    assert_eq!(config.warnings.len(), 2);
}

#[test]
fn logins_come_from_files_and_a_file_that_others_can_read_is_warned_of() {
    let private = secret("admin:pa:ss\n", 0o600);
    let open = secret("hunter2\n", 0o644);
    let credentials = format!("cam={}", private.path().display());
    let user = format!("anna:{}", open.path().display());
    let config = load(&["--pull", "cam=rtsp://h/1", "--credentials", &credentials, "--user", &user]).unwrap();
    let login = config.plane.pulls[0].credentials.as_ref().unwrap();
    assert_eq!((login.user(), login.password().expose()), ("admin", "pa:ss"));
    let anna = &config.plane.users[0];
    assert_eq!((anna.name.as_str(), anna.credentials.user()), (EVERY_NAME, "anna"));
    assert_eq!(anna.credentials.password().expose(), "hunter2");
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("chmod 600"), "{:?}", config.warnings);

    let both = secret("anna:hunter2", 0o600);
    let config = load(&["--user", &format!("anna:{}", both.path().display())]).unwrap();
    assert_eq!(config.plane.users[0].credentials.password().expose(), "hunter2");
}

#[test]
fn basic_is_allowed_to_the_cameras_that_are_named_and_to_no_other() {
    let pulls = ["--pull", "a=rtsp://h/1", "--pull", "b=rtsp://h/2", "--allow-basic", "b"];
    let config = load(&pulls).unwrap();
    assert_eq!(config.plane.pulls.iter().map(|pull| pull.basic).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn no_message_and_no_debug_form_shows_a_password() {
    let file = secret("nocolonsecret", 0o600);
    let credentials = format!("cam={}", file.path().display());
    let error = load(&[
        "--pull",
        "cam=http://admin:s3cret@h/1",
        "--pull",
        "c m=rtsp://admin:s3cret@h/2",
        "--credentials",
        &credentials,
    ])
    .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("s3cret") && !text.contains("nocolonsecret"), "{text}");
    let config = load(&["--pull", "cam=rtsp://admin:s3cret@h/1"]).unwrap();
    assert!(config.warnings[0].contains("--credentials cam=FILE"), "{:?}", config.warnings);
    assert!(!config.warnings[0].contains("s3cret"));
}

/// `help.txt` is what a person sees; after a change of the options it is written anew with
/// `cargo run -p rtp-proxy -- standalone --help > rtp-proxy/src/config/help.txt`.
#[test]
fn help_is_the_committed_text() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let help = command.find_subcommand_mut("standalone").unwrap().render_help().to_string();
    assert_eq!(help.trim_end(), include_str!("help.txt").trim_end());
}

#[test]
fn every_command_says_what_it_does_and_names_its_options() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut help = |verb: &str| command.find_subcommand_mut(verb).unwrap().render_help().to_string();
    let (status, doctor, uninstall) = (help("status"), help("doctor"), help("uninstall"));
    assert!(status.contains("what carries each") && status.contains("--admin <ADDRESS:PORT>"), "{status}");
    assert!(status.contains(&format!("[default: {}]", Config::default().admin)), "{status}");
    assert!(doctor.contains("the fix for each thing that is missing"), "{doctor}");
    assert!(uninstall.contains("Remove every program, link, filter and setting"), "{uninstall}");
    for help in [status, doctor, uninstall] {
        assert!(help.contains("--bpffs <DIRECTORY>") && help.contains("[default: /sys/fs/bpf]"), "{help}");
    }
}

#[test]
fn the_fast_path_is_set_by_its_options_and_named_after_the_first_media_port() {
    let kernel =
        load(&["--max-rung", "tc", "--interface", "eth0", "--interface", "eth1", "--adopt-grace", "5s"]);
    let kernel = kernel.unwrap().kernel;
    assert_eq!((kernel.max_rung, kernel.adopt_grace), (Rung::Tc, Duration::from_secs(5)));
    assert_eq!(kernel.interfaces, ["eth0", "eth1"]);
    assert!(kernel.batching && !load(&["--batching", "off"]).unwrap().kernel.batching);
    assert_eq!(kernel.instance.as_deref(), Some("8060"));
    assert_eq!(load(&["--rtp-ports", "9000-9101"]).unwrap().kernel.instance.as_deref(), Some("9000"));
    assert_eq!(load(&["--rtp-ports", "0"]).unwrap().kernel.instance, None);
    let error =
        load(&["--max-rung", "tcz", "--interface", "a/b", "--batching", "on"]).unwrap_err().to_string();
    assert!(error.contains("--max-rung tcz") && error.contains("write tcx"), "{error}");
    assert!(error.contains("--interface a/b") && error.contains("ip link"), "{error}");
    assert!(error.contains("--batching on") && error.contains("off"), "{error}");
}

#[test]
fn help_states_the_defaults_that_apply() {
    let help = include_str!("help.txt");
    let config = Config::default();
    for default in [
        config.rtsp.to_string(),
        config.admin.to_string(),
        format!("{}-{}", config.rtp_ports.start(), config.rtp_ports.end()),
        format!("{DEFAULT_SESSION_TIMEOUT:?}"),
        format!("{DEFAULT_LINGER:?}"),
        config.max_connections.to_string(),
        config.plane.limits.published_streams.to_string(),
    ] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}");
    }
}

#[test]
fn room_for_streams_comes_with_room_for_their_tracks_in_the_fast_path() {
    let usual = load(&[]).unwrap();
    assert_eq!((usual.plane.limits.published_streams, usual.kernel.capacity), (1024, Capacity::default()));
    let many = load(&["--max-streams", "10000"]).unwrap();
    assert_eq!(many.plane.limits.published_streams, 10_000);
    assert!(many.kernel.capacity.flows >= 20_000, "{:?}", many.kernel.capacity);
    let error = load(&["--max-streams", "0"]).unwrap_err().to_string();
    assert!(error.contains("--max-streams 0") && error.contains("write 1"), "{error}");
}
