//! `ka attach --undo`: reads the earlier settings of sockets from the output of an earlier `ka attach --json`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use ka_core::{Config, Settings};
use ka_reach::attach::Report;
use ka_reach::file;
use ka_reach::reason::reason;
use serde::Deserialize;

use super::report::SettingsJson;
use crate::failure::Failure;
use crate::plural;

/// The sockets that an earlier `ka attach --json` set, and their settings before that.
pub(super) struct Undo {
    pub(super) pids: BTreeSet<i32>,
    /// The earlier settings of each socket, by inode.
    pub(super) before: HashMap<u32, Config>,
    /// The processes and settings of sockets that cannot be restored.
    not_restorable: Vec<(i32, Settings)>,
}

/// The fields of a socket in the output of `ka attach --json` that --undo reads.
#[derive(Deserialize)]
struct UndoRow {
    pid: Option<i32>,
    inode: Option<u32>,
    result: String,
    before: Option<SettingsJson>,
}

/// The part of the output of `ka attach --json` without --follow that --undo reads.
#[derive(Deserialize)]
struct UndoFile {
    sockets: Vec<UndoRow>,
}

impl Undo {
    /// Reads the output of `ka attach --json`, with or without --follow.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong =
            |why: &dyn fmt::Display| Failure::new(format_args!("attach: --undo {}: {why}", path.display()));
        let mut text = Vec::new();
        let read = file::open_regular(path).and_then(|mut file| file.read_to_end(&mut text));
        read.map_err(|error| wrong(&reason(&error)))?;
        let rows = match serde_json::from_slice::<UndoFile>(&text) {
            Ok(summary) => summary.sockets,
            Err(_) => serde_json::Deserializer::from_slice(&text)
                .into_iter()
                .collect::<Result<Vec<UndoRow>, _>>()
                .ok()
                .filter(|rows| !rows.is_empty())
                .ok_or_else(|| wrong(&"must be the output of ka attach --json"))?,
        };
        let mut undo = Self { pids: BTreeSet::new(), before: HashMap::new(), not_restorable: Vec::new() };
        let mut without = 0_usize;
        for UndoRow { pid, inode, before, .. } in rows.into_iter().filter(|row| row.result == "set") {
            let (Some(pid), Some(inode), Some(before)) = (pid, inode, before.map(Settings::from)) else {
                without += 1;
                continue;
            };
            let Ok(config) = Config::try_from(before) else {
                undo.not_restorable.push((pid, before));
                continue;
            };
            undo.pids.insert(pid);
            // The first row of a socket has the oldest settings.
            undo.before.entry(inode).or_insert(config);
        }
        if without > 0 {
            return Err(wrong(&format_args!(
                "it lacks the earlier settings of {}: --via bpf reports only the new ones",
                plural::count(without, "socket")
            )));
        }
        Ok(undo)
    }

    /// Reports the sockets that cannot be restored.
    pub(super) fn report_failures(&self, report: &mut Report) {
        for (pid, settings) in &self.not_restorable {
            report.fail(*pid, None, ka_reach::Error::NotRestorable(*settings));
        }
    }
}
