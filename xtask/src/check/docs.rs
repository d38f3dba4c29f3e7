//! Documents are tested: files, commands, options, metrics and environment variables they name exist. So do
//! the documents that comments name.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::CommandFactory as _;

/// Everything a document may refer to.
struct Repository {
    files: Vec<String>,
    /// Text of every source file and script.
    sources: String,
    verbs: Vec<String>,
}

/// What documents name and the repository lacks.
pub(super) fn check() -> Result<Vec<String>> {
    let files = super::files(&[""])?;
    let sources: Vec<PathBuf> = super::files(&[".rs", ".py", ".toml", ".sh", "/run", ".txt"])?;
    let repository = Repository {
        files: files.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        sources: sources
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect::<Vec<_>>()
            .join("\n"),
        verbs: crate::Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect(),
    };
    let mut problems = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        if !Path::new(name).exists() {
            problems.push(format!("{name} is missing"));
        }
    }
    for path in super::files(&[".md"])? {
        let name = path.to_string_lossy().into_owned();
        let named = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].contains(&name.as_str());
        // What a change log names may be gone since.
        if !named && !name.starts_with("docs/") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        for (number, code) in code(&text) {
            for problem in repository.judge(&name, &code) {
                problems.push(format!("{name}:{number}: {problem}"));
            }
        }
        for (number, target) in links(&text) {
            let beside = path.parent().unwrap_or(Path::new("")).join(&target);
            if !beside.exists() {
                problems.push(format!("{name}:{number}: the link {target} leads nowhere"));
            }
        }
    }
    for path in super::files(&[".rs"])? {
        let name = path.to_string_lossy().into_owned();
        for (number, document) in cited(&std::fs::read_to_string(&path)?) {
            if !repository.has_file(&name, &document) {
                problems.push(format!("{name}:{number}: there is no document {document}"));
            }
        }
    }
    Ok(problems)
}

/// Documents that comments name, with line numbers.
fn cited(text: &str) -> Vec<(usize, String)> {
    let comments = text
        .lines()
        .enumerate()
        .filter_map(|(number, line)| line.split_once("//").map(|(_, comment)| (number + 1, comment)));
    comments
        .flat_map(|(number, comment)| {
            let words = comment.split(|c: char| !c.is_ascii_alphanumeric() && !b"_-./".contains(&(c as u8)));
            words
                .map(|word| word.trim_end_matches('.'))
                .filter(|word| Path::new(word).extension().is_some_and(|ending| ending == "md"))
                .map(|word| (number, word.to_owned()))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Code spans and lines of code blocks, with line numbers.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    let mut command = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            let language = line.trim_start().trim_start_matches('`');
            // Other blocks are output or drawings.
            command = fenced && ["sh", "console", "bash"].contains(&language);
            continue;
        }
        if fenced {
            if command {
                found.push((number + 1, line.trim_start_matches("$ ").to_owned()));
            }
            continue;
        }
        found.extend(line.split('`').skip(1).step_by(2).map(|span| (number + 1, span.to_owned())));
    }
    found
}

/// Targets of relative links.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

impl Repository {
    fn judge(&self, document: &str, code: &str) -> Vec<String> {
        let words: Vec<&str> = code.split_whitespace().collect();
        let mut problems = Vec::new();
        if let ["cargo", "xtask", verb, ..] = words.as_slice()
            && verb.bytes().all(|b| b.is_ascii_lowercase())
            && !self.verbs.iter().any(|known| known == verb)
        {
            problems.push(format!("cargo xtask has no command {verb}"));
        }
        // Options of other programs are theirs to document.
        let ours = words.first().is_some_and(|word| word.starts_with("--") || word.ends_with("rtp-proxy"))
            || code.starts_with("cargo xtask");
        for word in &words {
            let word = word.trim_matches(|c: char| ",;:()[]\"'|".contains(c));
            if ours && let Some(option) = word.strip_prefix("--") {
                let option = option.split('=').next().unwrap_or_default();
                if !option.is_empty() && !self.has_option(option) {
                    problems.push(format!("no program of ours has --{option}"));
                }
            }
            for name in names(word, "msm_").into_iter().chain(names(word, "MSM_")) {
                if !self.has_name(&name) {
                    problems.push(format!("{name} is in no source file"));
                }
            }
        }
        if words.len() == 1 && looks_like_path(code) {
            problems.extend(
                expand(code)
                    .into_iter()
                    .filter(|path| !self.has_file(document, path))
                    .map(|path| format!("there is no file {path}")),
            );
        }
        problems
    }

    fn has_option(&self, option: &str) -> bool {
        let field = format!("{}:", option.replace('-', "_"));
        ["help", "version"].contains(&option)
            || self.sources.contains(&format!("--{option}"))
            || self.sources.contains(&field)
            || self.sources.contains(&format!("long = \"{option}\""))
    }

    fn has_name(&self, name: &str) -> bool {
        // The registry appends _total to counters and _info to constants; a variable may stand for an option.
        let registered = name.trim_end_matches("_total").trim_end_matches("_info");
        let bare = registered.trim_start_matches("msm_");
        self.sources.contains(registered)
            || self.sources.contains(&format!("\"{bare}"))
            || name
                .strip_prefix("MSM_")
                .is_some_and(|rest| self.has_option(&rest.to_lowercase().replace('_', "-")))
    }

    fn has_file(&self, document: &str, path: &str) -> bool {
        let path = path.trim_start_matches("./").trim_end_matches('/');
        let beside = Path::new(document).parent().map(|folder| folder.join(path));
        self.files.iter().any(|file| {
            file == path || file.ends_with(&format!("/{path}")) || file.contains(&format!("{path}/"))
        }) || beside.is_some_and(|path| path.exists())
    }
}

/// Identifiers in a word that start so.
fn names(word: &str, prefix: &str) -> Vec<String> {
    word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|name| name.starts_with(prefix) && name.len() > prefix.len() && !name.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// A relative path of ours: a known ending, or folders.
fn looks_like_path(code: &str) -> bool {
    let plain = code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./{},".contains(&b));
    let ending = [".rs", ".md", ".toml", ".py", ".proto", ".sh"].iter().any(|ending| code.ends_with(ending));
    let folder = code.ends_with('/') && !code.starts_with('/');
    plain && !code.starts_with('/') && (ending || folder)
}

/// `a/{b,c}.rs` stands for two files.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    inside.split(',').flat_map(|part| expand(&format!("{before}{part}{after}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        Repository {
            files: vec!["rtp-proxy/src/user/udp.rs".to_owned(), "docs/interop.md".to_owned()],
            sources: "#[arg(long)] pull_transport: Vec<String> \"rtp_packets\" MSM_TEST_PROXY".to_owned(),
            verbs: vec!["test".to_owned()],
        }
    }

    #[test]
    fn what_exists_passes() {
        for code in [
            "user/udp.rs",
            "rtp-proxy/src/user/",
            "--pull-transport door=udp",
            "msm_rtp_packets_total",
            "cargo xtask test interop",
            "cargo build --release",
            "MSM_TEST_PROXY",
            "MSM_PULL_TRANSPORT",
            "/metrics",
        ] {
            assert_eq!(repository().judge("README.md", code), Vec::<String>::new(), "{code}");
        }
    }

    #[test]
    fn what_does_not_exist_is_named() {
        for code in [
            "user/tcp.rs",
            "rtp-proxy --pul x",
            "msm_rtp_bytes_total",
            "cargo xtask tset",
            "user/{udp,tcp}.rs",
            "MSM_NOTHING",
        ] {
            assert_eq!(repository().judge("README.md", code).len(), 1, "{code}");
        }
    }

    #[test]
    fn documents_are_found_in_comments_only() {
        // `#` for a slash: this file is checked too.
        let text = "##! See `docs/interop.md`, 3.\nlet a = \"b.md\"; ## as (gone.md).\n### A `.md` file.\n";
        assert_eq!(
            cited(&text.replace('#', "/")),
            [(1, "docs/interop.md".to_owned()), (2, "gone.md".to_owned())]
        );
        assert!(repository().has_file("a/b.rs", "docs/interop.md"));
        assert!(!repository().has_file("a/b.rs", "gone.md"));
    }

    #[test]
    fn code_is_found_in_spans_and_in_command_blocks_only() {
        let text = "a `b` c\n```sh\n$ d\n```\n```\ne\n```\n";
        assert_eq!(code(text), [(1, "b".to_owned()), (3, "d".to_owned())]);
    }
}
