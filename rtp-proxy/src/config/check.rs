//! Parsing of single values, and the words for what is wrong with them.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use msm_runtime::telemetry::redact;

/// A value that cannot be used: which key, what it said, why not, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {value}: {why}; {fix}")]
pub struct Problem {
    /// The option or environment variable it came from.
    pub key: String,
    /// The value, without credentials.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
    /// What to write instead.
    pub fix: String,
}

/// A reading of one value: the reason and the fix, without key and value.
pub(super) type Reading<T> = Result<T, (String, String)>;

fn wrong<T>(why: impl Into<String>, fix: impl Into<String>) -> Reading<T> {
    Err((why.into(), fix.into()))
}

/// Collects problems while values are read.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// The value of a good reading; a bad one is noted and `None`.
    pub(super) fn take<T>(&mut self, key: &str, value: &str, reading: Reading<T>) -> Option<T> {
        match reading {
            Ok(value) => Some(value),
            Err((why, fix)) => {
                let value = if value.is_empty() { "''".to_owned() } else { redact(value).into_owned() };
                self.0.push(Problem { key: key.to_owned(), value, why, fix });
                None
            }
        }
    }

    /// Notes a problem without a reading.
    pub(super) fn note(&mut self, key: &str, value: &str, why: impl Into<String>, fix: impl Into<String>) {
        self.take::<()>(key, value, wrong(why, fix));
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

/// `ADDRESS:PORT`, `[V6]:PORT` or `:PORT` (every address, both families).
pub(super) fn address(text: &str, default_port: u16) -> Reading<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(Ok(port)) = text.strip_prefix(':').map(str::parse) {
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    if let Ok(port) = text.parse::<u16>() {
        return wrong("a port alone", format!("write [::]:{port} for every address, or 127.0.0.1:{port}"));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
        return wrong("the port is missing", format!("write {}", SocketAddr::new(ip, default_port)));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
            return wrong(
                format!("port {port:?} is not between 0 and 65535"),
                format!("write {}", SocketAddr::new(ip, default_port)),
            );
        }
        if host == "localhost" {
            return wrong("names are not looked up here", format!("write 127.0.0.1:{port} or [::1]:{port}"));
        }
    }
    wrong("not an address and port", format!("write 127.0.0.1:{default_port} or [::]:{default_port}"))
}

/// `FIRST-LAST`, first even, at least two pairs; `0` lets the system choose every port.
pub(super) fn ports(text: &str) -> Reading<RangeInclusive<u16>> {
    if text == "0" {
        return Ok(0..=0);
    }
    let Some((first, last)) = text.split_once('-') else {
        return wrong("not a range", "write FIRST-LAST, 8060-8187 for example");
    };
    let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) else {
        return wrong("ports are numbers from 1 to 65535", "write FIRST-LAST, 8060-8187 for example");
    };
    if first == 0 || first % 2 == 1 {
        let even = first.saturating_add(1) & !1;
        return wrong("RTP takes even ports", format!("write {even}-{last}"));
    }
    if last < first.saturating_add(3) {
        let last = first.saturating_add(127);
        return wrong(
            "viewers need two ports and each track of a camera two more",
            format!("write {first}-{last}"),
        );
    }
    Ok(first..=last)
}

/// `500ms`, `25s`, `2m`, within `range`.
pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Reading<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let Ok(number) = number.parse::<u32>() else {
        return wrong("not a time", "write a number with a unit: 500ms, 25s, 2m");
    };
    let value = match unit {
        "ms" => Duration::from_millis(number.into()),
        "s" => Duration::from_secs(number.into()),
        "m" => Duration::from_secs(u64::from(number) * 60),
        "" if number == 0 => Duration::ZERO,
        "" => return wrong("the unit is missing", format!("write {number}s")),
        _ => {
            return wrong(
                format!("unknown unit {unit:?}"),
                format!("write {number}ms, {number}s or {number}m"),
            );
        }
    };
    if value < *range.start() {
        return wrong("too short", format!("the shortest is {:?}", range.start()));
    }
    if value > *range.end() {
        return wrong("too long", format!("the longest is {:?}", range.end()));
    }
    Ok(value)
}

/// A number within `range`.
pub(super) fn number(text: &str, range: RangeInclusive<usize>) -> Reading<usize> {
    match text.parse::<usize>() {
        Ok(value) if range.contains(&value) => Ok(value),
        Ok(value) => {
            let nearest = value.clamp(*range.start(), *range.end());
            wrong(format!("not between {} and {}", range.start(), range.end()), format!("write {nearest}"))
        }
        Err(_) => wrong("not a number", format!("write {} to {}", range.start(), range.end())),
    }
}

/// One of `names`.
pub(super) fn choice<T>(text: &str, names: &[&str], parsed: Option<T>) -> Reading<T> {
    match parsed {
        Some(value) => Ok(value),
        None => wrong(
            format!("none of {}", names.join(", ")),
            nearest(text, names.iter().copied())
                .map_or_else(|| format!("write {}", names.join(" or ")), |name| format!("write {name}")),
        ),
    }
}

/// `NAME<separator>REST`, neither empty.
pub(super) fn named(text: &str, separator: char, form: &str) -> Reading<(String, String)> {
    match text.split_once(separator) {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name.to_owned(), rest.to_owned())),
        _ => wrong(format!("not {form}"), format!("write {form}")),
    }
}

/// A stream's name: what stands after the first `/` of its URL.
pub(super) fn stream_name(name: &str) -> Reading<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '~');
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(good);
    if name.len() <= 200 && name.split('/').all(segment) {
        return Ok(());
    }
    let mut fixed: String =
        name.chars().map(|c| if good(c) || c == '/' { c } else { '-' }).take(200).collect();
    while let Some(at) = fixed.find("//") {
        fixed.remove(at);
    }
    let fixed = fixed.trim_matches(['/', '.']);
    let fixed = if fixed.is_empty() { "cam1" } else { fixed };
    wrong(
        "a stream name is a path of letters, digits, '.', '_', '-' and '~'",
        format!("call it {fixed}, for example"),
    )
}

/// Reads the one line of a secret's file. The second value is a warning about who else can read it.
pub(super) fn secret(path: &Path) -> Reading<(String, Option<String>)> {
    use std::os::unix::fs::PermissionsExt as _;
    /// A line with a user and a password; a larger file is not what was meant.
    const LONGEST: u64 = 1024;
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            return wrong(
                format!("cannot read {shown}: {error}"),
                "create it, mode 0600, owned by this user",
            );
        }
    };
    if !meta.is_file() || meta.len() > LONGEST {
        return wrong(format!("{shown} is not a file of one line"), "write one line into a plain file");
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return wrong(
                format!("cannot read {shown}: {error}"),
                "make it readable for this user, as UTF-8",
            );
        }
    };
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let Some(line) = lines.next() else {
        return wrong(format!("{shown} is empty"), "write one line into it");
    };
    if lines.next().is_some() {
        return wrong(format!("{shown} has more than one line"), "leave only the one line in it");
    }
    let open = meta.permissions().mode() & 0o077 != 0;
    let warning =
        open.then(|| format!("{shown} can be read by other users of this machine; run: chmod 600 {shown}"));
    Ok((line.to_owned(), warning))
}

/// The name of an interface, which need not be there yet.
pub(super) fn interface(text: &str) -> Reading<()> {
    let good = |c: char| !c.is_whitespace() && c != '/' && !c.is_control();
    if (1..=15).contains(&text.len()) && text.chars().all(good) && text != "." && text != ".." {
        return Ok(());
    }
    wrong("no interface can have that name", "write eth0, for example; ip link shows the names")
}

/// The one of `names` that is nearest to `text`, if any is near at all.
pub(super) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    names
        .map(|name| (distance(&lower, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= name.len().max(text.len()).div_ceil(2).min(4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours counted as two) between two short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Whether cleartext credentials stand in the URL, and so in the process list.
pub(super) fn has_userinfo(url: &str) -> bool {
    matches!(redact(url), std::borrow::Cow::Owned(_))
}

/// The shape of a camera's URL. Its details are the session logic's.
pub(super) fn camera_url(url: &str) -> Reading<()> {
    let shown = redact(url);
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong("not a URL", format!("write rtsp://{shown}"));
    };
    if !scheme.eq_ignore_ascii_case("rtsp") {
        let (_, rest) = shown.split_once("://").unwrap_or_default();
        return wrong(format!("scheme {scheme:?} is not spoken here"), format!("write rtsp://{rest}"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.is_empty() || host.starts_with(':') {
        return wrong("the host is missing", "write rtsp://HOST[:PORT]/PATH");
    }
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return wrong(
            "blanks and control characters do not belong into a URL",
            "write them as %20 and so on",
        );
    }
    if host.starts_with("169.254.169.254") || host.to_ascii_lowercase().starts_with("[fd00:ec2::254]") {
        return wrong("that is a cloud's metadata service, no camera (SEC-11)", "write the camera's address");
    }
    Ok(())
}
