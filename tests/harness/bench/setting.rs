//! Settings of the whole machine that a benchmark needs otherwise, and gives back.
//!
//! The kernel has none of them per network namespace. What one was is noted in a file first, so that a benchmark
//! that was killed costs the machine nothing but the time until the next one starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Where the notes lie: gone with the next boot, as are the settings.
const NOTES: &str = "/run/msm-bench";

/// A setting that is another one for now; dropped, it is what it was.
#[derive(Debug)]
pub struct Setting {
    file: PathBuf,
    before: String,
    /// Ours; `None` where somebody who still runs has noted what it was before him.
    note: Option<PathBuf>,
}

impl Setting {
    /// Writes `value` into `file`, a path below `/proc/sys`.
    ///
    /// # Errors
    /// It cannot be read, noted or written.
    pub fn change(file: &str, value: &str) -> Result<Self> {
        Self::noted_in(Path::new(NOTES), Path::new(file), value)
    }

    fn noted_in(notes: &Path, file: &Path, value: &str) -> Result<Self> {
        let name = file.file_name().context("a setting is a file")?;
        let path = notes.join(name);
        if Note::read(&path).is_none_or(|note| !note.is_running()) {
            put_back(&path)?;
        }
        let show = || file.display().to_string();
        let before = fs::read_to_string(file).with_context(show)?.trim().to_owned();
        let mut setting = Self { file: file.to_owned(), before, note: None };
        if !path.exists() {
            fs::create_dir_all(notes).context("the folder of the notes")?;
            let own = std::process::id();
            let note = format!("{}\n{own} {}\n{}\n", file.display(), started(own), setting.before);
            fs::write(&path, note).with_context(|| path.display().to_string())?;
            setting.note = Some(path);
        }
        fs::write(file, value).with_context(show)?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // The note stays where giving back fails.
        if fs::write(&self.file, &self.before).is_ok()
            && let Some(note) = &self.note
        {
            fs::remove_file(note).ok();
        }
    }
}

/// Gives back what benchmarks changed that do not run any more; returns what that was, in words.
///
/// # Errors
/// A setting cannot be given back.
pub fn give_back() -> Result<Vec<String>> {
    give_back_in(Path::new(NOTES))
}

fn give_back_in(notes: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(notes) else { return Ok(Vec::new()) };
    let mut done = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if Note::read(&path).is_none_or(|note| !note.is_running()) {
            done.extend(put_back(&path)?);
        }
    }
    Ok(done)
}

/// What a note says is done, and the note goes.
fn put_back(path: &Path) -> Result<Option<String>> {
    let Some(note) = Note::read(path) else {
        fs::remove_file(path).ok();
        return Ok(None);
    };
    let found = fs::read_to_string(&note.file).unwrap_or_default();
    fs::write(&note.file, &note.before).with_context(|| note.file.display().to_string())?;
    fs::remove_file(path).with_context(|| path.display().to_string())?;
    Ok(Some(format!("{}: {} again, not {}", note.file.display(), note.before, found.trim())))
}

struct Note {
    file: PathBuf,
    pid: u32,
    started: String,
    before: String,
}

impl Note {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let (file, who, before) = (lines.next()?, lines.next()?, lines.next()?);
        let (pid, started) = who.split_once(' ')?;
        Some(Self {
            file: file.into(),
            pid: pid.parse().ok()?,
            started: started.to_owned(),
            before: before.to_owned(),
        })
    }

    fn is_running(&self) -> bool {
        let now = started(self.pid);
        !now.is_empty() && now == self.started
    }
}

/// When a process was started, in ticks since boot: numbers of processes are used again. Empty if there is none.
fn started(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name in brackets, which may hold anything; this is the 22nd.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scratch;

    fn scene() -> (Scratch, PathBuf, PathBuf) {
        let scratch = Scratch::new("setting").unwrap();
        let (notes, file) = (scratch.file("notes"), scratch.file("some_max"));
        fs::write(&file, "1000\n").unwrap();
        (scratch, notes, file)
    }

    #[test]
    fn a_setting_is_given_back_at_the_end() {
        let (_scratch, notes, file) = scene();
        let setting = Setting::noted_in(&notes, &file, "32768").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "32768");
        assert_eq!(give_back_in(&notes).unwrap(), [""; 0], "whoever changed it still runs");
        drop(setting);
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000");
        assert_eq!(fs::read_dir(&notes).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_one_changed_is_given_back_by_the_next_start() {
        let (_scratch, notes, file) = scene();
        let setting = Setting::noted_in(&notes, &file, "32768").unwrap();
        // Another process of the same number, much later.
        let note = notes.join("some_max");
        let own = format!("{0} {1}", std::process::id(), started(std::process::id()));
        let text = fs::read_to_string(&note).unwrap();
        assert!(text.contains(&own), "{text}");
        fs::write(&note, text.replace(&own, &format!("{} 1", std::process::id()))).unwrap();
        std::mem::forget(setting);
        let said = give_back_in(&notes).unwrap();
        assert_eq!(said, [format!("{}: 1000 again, not 32768", file.display())]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000");
        assert_eq!(give_back_in(&notes).unwrap(), [""; 0]);
    }
}
