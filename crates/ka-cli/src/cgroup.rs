//! `ka cgroup`: a policy for all programs of a cgroup, those that run and those that will.
//!
//! The kernel itself gives it to the sockets, by two small programs that are attached to the cgroup ([`crate::bpf`]).
//! They are kept by links, and those by paths in the bpf filesystem, a folder a cgroup: so they stay when ka has ended,
//! and go when the folder does, or the cgroup.

mod sweep;
mod walk;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_policy::{Mode, Policy};
use serde::Serialize;

use crate::args::{self, CgroupCommand};
use crate::bpf::host::{self, BPF_FOLDER};
use crate::bpf::{self, Programs};
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::notify::Notify;
use crate::policy;
use crate::sys::{self, users};
use crate::table::{self, Column, Output};
use crate::text::{self, reason};
use crate::via;

use sweep::{Swept, refusals, sweep};
use walk::walk;

pub(crate) fn cgroup(args: &args::Cgroup) -> Outcome {
    match &args.command {
        CgroupCommand::Attach(args) => attach(args),
        CgroupCommand::Detach(args) => detach(args),
        CgroupCommand::Ls(args) => ls(args),
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("cgroup {what}: {why}"))
}

/// A cgroup, by its folder, which is held open.
pub(crate) struct Cgroup {
    pub(crate) folder: File,
    pub(crate) path: PathBuf,
    /// Its number, which is its folder's inode.
    pub(crate) id: u64,
}

impl Cgroup {
    /// The cgroup of this name: its folder, or what stands in /proc/PID/cgroup, with or without the / before it.
    fn named(name: &OsStr) -> Result<Self, String> {
        // A variable that is not set, most likely, which must not become the whole tree.
        if name.is_empty() {
            return Err("the name is empty; the root cgroup is /".to_owned());
        }
        let root = host::cgroup_root().ok_or(host::NO_CGROUPS)?;
        let path = Path::new(name);
        let within = root.join(path.strip_prefix("/").unwrap_or(path));
        let refused = |path: &Path, error: io::Error| format!("{}: {}", path.display(), reason(&error));
        for path in [path, &within] {
            let mut cgroup = match Self::open(path) {
                Ok(cgroup) if host::is_cgroup(&cgroup.folder) => cgroup,
                Err(error) if !is_gone(&error) && error.kind() != io::ErrorKind::NotADirectory => {
                    return Err(refused(path, error));
                }
                _ => continue,
            };
            let absolute = match fs::canonicalize(path) {
                // The path is longer than the kernel accepts (`PATH_MAX`).
                Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => std::path::absolute(path),
                other => other,
            };
            cgroup.path = absolute.map_err(|error| refused(path, error))?;
            return Ok(cgroup);
        }
        Err(format!(
            "{}: not a cgroup (v2): neither a cgroup's folder nor a name below {}",
            path.display(),
            root.display()
        ))
    }

    /// Returns whether this is the root of the whole tree. Only the root has no type: cgroups(7), "cgroup.type".
    fn is_root(&self) -> bool {
        self.file("cgroup.type").is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Opens a folder, even if its path is longer than `PATH_MAX`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let folder = match open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                let (start, rest) = match path.strip_prefix("/") {
                    Ok(rest) => ("/", rest),
                    Err(_) => (".", path),
                };
                rest.components().try_fold(open(start.as_ref())?, |folder, name| {
                    sys::open_at(folder.as_fd(), name.as_os_str(), libc::O_DIRECTORY)
                })?
            }
            other => other?,
        };
        let id = folder.metadata()?.ino();
        Ok(Self { folder, path: path.to_path_buf(), id })
    }

    /// Opens a cgroup directly below this one, or "." or "..".
    fn below(&self, name: &OsStr) -> io::Result<File> {
        sys::open_at(self.folder.as_fd(), name, libc::O_DIRECTORY)
    }

    /// Opens one of the cgroup's files.
    fn file(&self, name: &str) -> io::Result<File> {
        sys::open_at(self.folder.as_fd(), name.as_ref(), 0)
    }

    /// What it is called: its folder without where cgroups are mounted.
    fn name(&self) -> String {
        name(&self.path)
    }

    /// Where what is attached to it is kept.
    fn pins(&self) -> PathBuf {
        pins().join(self.id.to_string())
    }

    /// A folder beside that, which is not there: two of one purpose are, where an attach was ended halfway.
    fn spare_pins(&self, purpose: &str) -> PathBuf {
        let named = |number| pins().join(format!("{}_{purpose}{number}", self.id));
        let is_free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
        (1..=u32::MAX).map(named).find(is_free).unwrap_or_else(|| named(0))
    }

    /// All folders where something of it is kept, whatever they are called, and those of its name in which nothing says
    /// whose it is.
    fn kept(&self) -> Vec<PathBuf> {
        let own = self.id.to_string();
        let is_own = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
            name.split(|byte| *byte == b'_').next() == Some(own.as_bytes())
        };
        let is_kept = |folder: &Path, id: Option<u64>| match id {
            None | Some(0) => is_own(folder),
            Some(id) => id == self.id,
        };
        kept().into_iter().filter(|(folder, id)| is_kept(folder, *id)).map(|(folder, _)| folder).collect()
    }
}

fn name(path: &Path) -> String {
    let below = host::cgroup_root().and_then(|root| Some(path.strip_prefix(root).ok()?.to_path_buf()));
    let name = below.map_or_else(|| path.to_path_buf(), |below| Path::new("/").join(below));
    text::lossless(name.as_os_str().as_encoded_bytes()).into_owned()
}

/// Where all that ka has attached is kept, a folder a cgroup, named by its number.
fn pins() -> PathBuf {
    Path::new(BPF_FOLDER).join("ka")
}

/// A bpf filesystem that mount(8) has mounted lets everybody make folders in it. What somebody else has made there, or may
/// write to, is not for us to keep anything in, nor to remove anything from: it may lead anywhere.
fn check_pins() -> Result<(), String> {
    let path = pins();
    let (_, user) = users();
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {}", path.display(), reason(&error))),
        Ok(found) if found.is_dir() && [0, user].contains(&found.uid()) && found.mode() & 0o022 == 0 => {
            Ok(())
        }
        Ok(found) => Err(format!(
            "{}: user {} made it, or others may write to it, so it is not used: remove it, and ka makes one of its own",
            path.display(),
            found.uid()
        )),
    }
}

/// While this is open, no other ka changes what is kept: what stands half done is removed by the next.
fn lock_pins() -> Result<Option<File>, String> {
    let said = |error: io::Error| format!("{}: {}", pins().display(), reason(&error));
    match File::open(pins()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => {
            let folder = opened.map_err(said)?;
            sys::lock(folder.as_fd()).map_err(said)?;
            Ok(Some(folder))
        }
    }
}

/// Returns the policies of the cgroups above this one, the nearest first.
fn above(cgroup: &Cgroup) -> Vec<(PathBuf, Policy<'static>)> {
    let mut found = Vec::new();
    let mut folder = cgroup.below("..".as_ref());
    for path in cgroup.path.ancestors().skip(1) {
        let Ok(open) = folder.as_ref() else { break };
        if !host::is_cgroup(open) {
            break;
        }
        let attached = bpf::attached(open.as_fd()).unwrap_or_default();
        found.extend(attached.into_iter().map(|policy| (path.to_path_buf(), policy)));
        folder = sys::open_at(open.as_fd(), "..".as_ref(), libc::O_DIRECTORY);
    }
    found
}

/// The policy of a cgroup above that holds against that of this one, as who may not ask the kernel for it cannot know.
fn held_above(cgroup: &Cgroup, policy: Policy<'static>) -> Option<String> {
    // The kernel calls the programs of the one furthest up last.
    let holding = above(cgroup).into_iter().rfind(|(_, found)| found.mode == Mode::Force);
    let (path, found) = holding.filter(|(_, found)| found.config != policy.config)?;
    let name = name(&path);
    Some(format!(
        "{} above it has {} in mode force, which overrides this policy",
        text::visible(name.as_bytes()),
        found.config
    ))
}

/// Describes the policies of cgroups below that this one overrides. `None` if the kernel refuses to list them.
fn overridden_below(cgroup: &Cgroup, policy: Policy<'static>) -> Option<String> {
    const NAMED: usize = 3;
    if policy.mode != Mode::Force {
        return None;
    }
    let mut found = Vec::new();
    let look = |below: &Cgroup| {
        if below.id != cgroup.id {
            let others = bpf::attached(below.folder.as_fd())?
                .into_iter()
                .filter(|other| other.config != policy.config);
            found.extend(others.map(|other| (below.path.clone(), other)));
        }
        Ok(())
    };
    // The sweep reports the cgroups that the walk skips.
    walk(cgroup, look).ok()?;
    let (first, rest) = found.split_at_checked(NAMED).unwrap_or((&found, &[]));
    let mut named: Vec<_> = first
        .iter()
        .map(|(path, other)| format!("{} ({})", text::visible(name(path).as_bytes()), other.config))
        .collect();
    if !rest.is_empty() {
        named.push(format!("{} more", rest.len()));
    }
    (!named.is_empty()).then(|| format!("it overrides the policies of cgroups below: {}", named.join(", ")))
}

/// What was done.
#[derive(Serialize)]
struct Attached {
    cgroup: String,
    policy: String,
    mode: &'static str,
    set: usize,
    unchanged: usize,
    failed: usize,
    /// Open sockets that the sweep left out, and why.
    left: Vec<String>,
}

fn attach(args: &args::CgroupAttach) -> Outcome {
    let failed = |why: String| failed("attach", why);
    let via::Chosen { policy, mode, skip } = via::choose("cgroup attach", &args.policy, args.mode)?;
    if !skip.is_empty() {
        let _ = writeln!(
            io::stderr(),
            "ka: cgroup attach: KA_SKIP is ignored here: the kernel sets the sockets of all programs"
        );
    }
    policy::check_on(&policy)?;
    if mode == Mode::Floor {
        return Err(failed(
            "KA_MODE=floor, in the environment or /etc/ka.conf: a cgroup has no such mode; use --mode force or --mode default"
                .to_owned(),
        ));
    }
    let policy = Policy::new(policy, mode);
    let cgroup = Cgroup::named(&args.cgroup).map_err(failed)?;
    if !args.whole_machine && cgroup.is_root() {
        return Err(failed(format!(
            "{} is the root cgroup, so the policy would apply to all programs of this machine; if you want that, add \
             --whole-machine",
            text::visible(cgroup.name().as_bytes())
        )));
    }
    let lacks_folder = || if args.foreground { None } else { host::lacks_bpf_folder() };
    if let Some(lack) = host::lacks(&host::FOR_CGROUPS).or_else(lacks_folder) {
        return Err(failed(lack));
    }
    let programs = Programs::load(policy)
        .map_err(|why| failed(format!("{why}; ka run and ka attach --follow need nothing of that")))?;
    let held = if args.foreground {
        Some(Held::new(&cgroup, &programs).map_err(failed)?)
    } else {
        keep(&cgroup, &programs).map_err(failed)?;
        None
    };
    if let Some(held) = &held {
        held.notify
            .send("READY=1\nSTATUS=The policy is in force for new sockets. Open sockets are being set.");
    }
    let held_above = held_above(&cgroup, policy);
    // What is open already. From here on nothing new comes without the policy.
    let swept = sweep(&cgroup, policy, held.as_ref());
    let mut out = BufWriter::new(io::stdout().lock());
    let refused: Vec<_> = refusals(&swept, policy.mode).collect();
    let Swept { set, unchanged, refused: counts, left, overridden } = swept;
    for why in held_above.iter().chain(&overridden).chain(&left).chain(&refused) {
        let _ = writeln!(io::stderr(), "ka: cgroup attach: {why}");
    }
    let status = if left.is_empty() && refused.is_empty() { 0 } else { FOUND };
    let attached = Attached {
        cgroup: cgroup.name(),
        policy: ka_core::Text::typed(&policy.config).to_string(),
        mode: policy.mode.name(),
        set,
        unchanged,
        failed: counts.values().sum(),
        left,
    };
    if args.json {
        json::to_writer_pretty(&mut out, &attached)?;
        writeln!(out)?;
    } else {
        let Attached { cgroup, policy, mode, set, unchanged, failed, left } = &attached;
        let cgroup = text::visible(cgroup.as_bytes());
        let incomplete = if left.is_empty() { "" } else { "; not all were looked at" };
        writeln!(
            out,
            "{cgroup}: {policy}, mode {mode}; {} set, {unchanged} unchanged, {failed} failed{incomplete}",
            text::count(*set, "socket")
        )?;
    }
    out.flush()?;
    if let Some(held) = held {
        held.wait(&attached)?;
        return Ok(0);
    }
    Ok(status)
}

/// What is attached for as long as this process is there: the kernel ends a link that nobody holds any more.
struct Held {
    links: Vec<(&'static str, OwnedFd)>,
    termination: OwnedFd,
    notify: Notify,
}

impl Held {
    fn new(cgroup: &Cgroup, programs: &Programs) -> Result<Self, String> {
        // First, so that no signal ends it without a word.
        let termination = sys::termination().map_err(|error| reason(&error))?;
        sys::forget_children();
        let links = programs.link(cgroup.folder.as_fd())?;
        Ok(Self { links, termination, notify: Notify::from_environment() })
    }

    /// Waits for a signal, or until the cgroup is removed. When this returns, no policy is in force.
    ///
    /// The wait only needs bpf(2) queries about ka's own links, so ka drops all other capabilities first.
    fn wait(self, attached: &Attached) -> io::Result<()> {
        /// Nobody tells of a cgroup's end.
        const INTERVAL: Duration = Duration::from_secs(5);
        if let Err(error) = host::keep_only_bpf() {
            let _ = writeln!(io::stderr(), "ka: cgroup attach: cannot drop capabilities: {}", reason(&error));
        }
        let Attached { cgroup, policy, mode, .. } = attached;
        let visible = text::visible(cgroup.as_bytes());
        self.notify.send(&format!("STATUS={visible}: {policy}, mode {mode}"));
        let interval = self.notify.interval().map_or(INTERVAL, |interval| interval.min(INTERVAL));
        while sys::poll(&[self.termination.as_fd()], interval)? != [true] {
            let has_ended =
                |(_, link): &(_, OwnedFd)| bpf::sys::linked_cgroup(link.as_fd()).is_ok_and(|id| id == 0);
            if self.links.iter().all(has_ended) {
                return writeln!(io::stderr(), "ka: cgroup attach: {visible} has been removed");
            }
            self.notify.is_alive();
        }
        self.notify.send("STOPPING=1");
        // By themselves the links end a moment after this process.
        for (_, link) in &self.links {
            let _ = bpf::sys::detach(link.as_fd());
        }
        Ok(())
    }
}

/// Attaches the programs, and keeps them; what was attached to the cgroup before is replaced. At every moment one of both
/// is in force, and a failure leaves what was.
fn keep(cgroup: &Cgroup, programs: &Programs) -> Result<(), String> {
    let said = |path: &Path, error: io::Error| format!("{}: {}", path.display(), reason(&error));
    match DirBuilder::new().mode(0o700).create(pins()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(said(&pins(), error)),
        _ => check_pins()?,
    }
    let _lock = lock_pins()?;
    // What was there is all released when what takes its place is there: also what an attempt has left that was ended
    // halfway, which may be all that is in force.
    let mut before = cgroup.kept();
    let (folder, new, old) = (cgroup.pins(), cgroup.spare_pins("new"), cgroup.spare_pins("old"));
    DirBuilder::new().mode(0o700).create(&new).map_err(|error| said(&new, error))?;
    let pinned = programs.link(cgroup.folder.as_fd()).and_then(|links| {
        let links = links.iter().map(|(name, link)| (*name, link.as_fd()));
        for (name, kept) in links.chain([programs.record()]) {
            let path = new.join(name);
            bpf::sys::pin(kept, &path).map_err(|error| said(&path, error))?;
        }
        Ok(())
    });
    let moved = pinned.and_then(|()| {
        if folder.exists() {
            fs::rename(&folder, &old).map_err(|error| said(&folder, error))?;
        }
        fs::rename(&new, &folder).map_err(|error| said(&new, error))
    });
    if let Err(why) = moved {
        let _ = fs::rename(&old, &folder);
        let _ = release(&new);
        return Err(why);
    }
    before.retain(|path| *path != folder);
    for path in before.iter().chain([&old]) {
        let _ = release(path);
    }
    // What is kept for cgroups that are gone is of no use to anybody.
    for (folder, id) in kept() {
        if id == Some(0) {
            let _ = release(&folder);
        }
    }
    Ok(())
}

/// The folders of what is kept, and the cgroup of each: 0 where it is gone, `None` where that cannot be found out.
fn kept() -> Vec<(PathBuf, Option<u64>)> {
    if check_pins().is_err() {
        return Vec::new();
    }
    let entries = fs::read_dir(pins()).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| entry.path())
        .map(|folder| {
            let link = bpf::sys::pinned(&folder.join(bpf::GIVER));
            let id = link.and_then(|link| bpf::sys::linked_cgroup(link.as_fd())).ok();
            (folder, id)
        })
        .collect()
}

/// Detaches what a folder keeps, and removes it: when this returns, nothing of it is in force.
fn release(folder: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // By itself the link ends a moment after its last name has gone. Before Linux 5.9 that must do. What is recorded
        // beside the links detaches nothing.
        if !path.ends_with(bpf::RECORD) {
            match bpf::sys::pinned(&path).and_then(|link| bpf::sys::detach(link.as_fd())) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && host::release() < (5, 9) => {}
                detached => result = result.and(detached),
            }
        }
        fs::remove_file(&path)?;
    }
    fs::remove_dir(folder)?;
    result
}

fn detach(args: &args::CgroupDetach) -> Outcome {
    let failed = |why: String| failed("detach", why);
    if let Some(lack) = host::lacks(&host::FOR_CGROUPS).or_else(host::lacks_bpf_folder) {
        return Err(failed(lack));
    }
    check_pins().map_err(failed)?;
    let _lock = lock_pins().map_err(failed)?;
    let mut names = HashMap::new();
    let mut removed = Vec::new();
    let folders = match &args.cgroup {
        None => {
            let kept = kept();
            let skipped = Cgroup::named("/".as_ref()).and_then(|root| {
                let look = |cgroup: &Cgroup| {
                    if kept.iter().any(|(_, id)| *id == Some(cgroup.id)) {
                        names.insert(Some(cgroup.id), cgroup.name());
                    } else if remove_abandoned(cgroup) {
                        removed.push(cgroup.name());
                    }
                    Ok(())
                };
                walk(&root, look).map_err(|error| reason(&error))
            });
            for why in skipped.map_or_else(|why| vec![why], |skipped| skipped.lines().collect()) {
                let _ = writeln!(io::stderr(), "ka: cgroup detach: {why}");
            }
            kept
        }
        Some(name) => {
            let cgroup = Cgroup::named(name).map_err(failed)?;
            let folders = cgroup.kept();
            if folders.is_empty() {
                let others = bpf::attached(cgroup.folder.as_fd()).is_ok_and(|found| !found.is_empty());
                let why = if others {
                    "its policy is not kept here, but by ka run --via cgroup, until its program ends, by ka cgroup attach \
                     --foreground, until that does, or by another bpffs"
                } else {
                    "it has no policy of its own (ka cgroup ls shows which have)"
                };
                return Err(failed(format!("{}: {why}", cgroup.name())).with_status(FOUND));
            }
            names.insert(Some(cgroup.id), cgroup.name());
            folders.into_iter().map(|folder| (folder, Some(cgroup.id))).collect()
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if folders.is_empty() && removed.is_empty() {
        writeln!(out, "no cgroup has a policy of ka cgroup attach")?;
    }
    for (folder, id) in folders {
        let policy = bpf::recorded(&folder.join(bpf::RECORD)).ok().flatten();
        release(&folder).map_err(|error| failed(format!("{}: {}", folder.display(), reason(&error))))?;
        let name = names.get(&id).map_or("a cgroup that has been removed", String::as_str);
        let name = text::visible(name.as_bytes());
        match policy {
            Some(Policy { config: policy, mode, .. }) => {
                writeln!(
                    out,
                    "{name}: {policy}, mode {}, detached; open sockets keep their settings",
                    mode.name()
                )?;
            }
            None => writeln!(out, "{name}: detached; open sockets keep their settings")?,
        }
    }
    for name in removed {
        writeln!(out, "{}: empty, removed", text::visible(name.as_bytes()))?;
    }
    out.flush()?;
    Ok(0)
}

/// Removes an empty cgroup of `ka run --via cgroup` that is left because ka was killed. The cgroup must have a policy
/// of ka, because anybody can give a cgroup such a name.
fn remove_abandoned(cgroup: &Cgroup) -> bool {
    cgroup.path.file_name().is_some_and(via::is_abandoned)
        && bpf::attached(cgroup.folder.as_fd()).is_ok_and(|found| !found.is_empty())
        && fs::remove_dir(&cgroup.path).is_ok()
}

/// A cgroup's policy, as JSON has it.
#[derive(Serialize)]
struct Row {
    /// `None` where it has been removed.
    cgroup: Option<String>,
    id: u64,
    policy: Option<String>,
    mode: Option<&'static str>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    /// Where it is kept; `None` where the cgroup itself does.
    pinned: Option<PathBuf>,
    /// The cgroup is above the requested one, and its policy is in force there too.
    above: bool,
}

fn ls(args: &args::CgroupLs) -> Outcome {
    let failed = |why: String| failed("ls", why);
    let root = match &args.cgroup {
        Some(name) => Cgroup::named(name),
        None => Cgroup::named("/".as_ref()),
    };
    let root = root.map_err(failed)?;
    let mut rows = Vec::new();
    let row = |cgroup: &Cgroup, policy: Option<Policy<'static>>, pinned: Option<PathBuf>| Row {
        cgroup: Some(cgroup.name()),
        id: cgroup.id,
        policy: policy.map(|policy| ka_core::Text::typed(&policy.config).to_string()),
        mode: policy.map(|policy| policy.mode.name()),
        idle: policy.and_then(|policy| policy.config.idle()),
        intvl: policy.and_then(|policy| policy.config.intvl()),
        cnt: policy.and_then(|policy| policy.config.cnt()),
        pinned,
        above: false,
    };
    // Those of cgroups that are gone are one, 0: no two are told apart any more.
    let mut pinned: HashMap<_, _> =
        kept().into_iter().filter_map(|(folder, id)| Some((id?, folder))).collect();
    if args.cgroup.is_some() {
        for (path, policy) in above(&root).into_iter().rev() {
            if let Ok(cgroup) = Cgroup::open(&path) {
                let pinned = pinned.get(&cgroup.id).cloned();
                rows.push(Row { above: true, ..row(&cgroup, Some(policy), pinned) });
            }
        }
    }
    let walked = walk(&root, |cgroup| {
        for policy in bpf::attached(cgroup.folder.as_fd())? {
            rows.push(row(cgroup, Some(policy), pinned.get(&cgroup.id).cloned()));
        }
        Ok(())
    });
    let skipped = match walked {
        // Who may see what is kept sees that: CAP_BPF, and root's folder.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && pins().read_dir().is_ok() => {
            let why = refusal(&error);
            let _ = writeln!(
                io::stderr(),
                "ka: cgroup ls: only what ka cgroup attach keeps is listed: the rest {why}"
            );
            walk(&root, |cgroup| {
                if let Some(folder) = pinned.get(&cgroup.id) {
                    rows.push(row(cgroup, bpf::recorded(&folder.join(bpf::RECORD))?, Some(folder.clone())));
                }
                Ok(())
            })
            .map_err(|error| failed(refusal(&error)))?
        }
        other => other.map_err(|error| failed(refusal(&error)))?,
    };
    for why in skipped.lines() {
        let _ = writeln!(io::stderr(), "ka: cgroup ls: {why}");
    }
    if let Some(folder) = pinned.remove(&0).filter(|_| args.cgroup.is_none()) {
        rows.push(Row {
            cgroup: None,
            id: 0,
            policy: None,
            mode: None,
            idle: None,
            intvl: None,
            cnt: None,
            pinned: Some(folder),
            above: false,
        });
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        write_table(&mut out, &rows)?;
    }
    out.flush()?;
    Ok(if skipped.is_empty() { 0 } else { FOUND })
}

/// A policy that holds for a process, as it is a cgroup's.
#[derive(Serialize)]
pub(crate) struct InForce {
    pub(crate) cgroup: String,
    pub(crate) policy: String,
    pub(crate) mode: &'static str,
}

/// Returns whether a cgroup is the root of the whole tree.
pub(crate) fn is_root(path: &Path) -> bool {
    Cgroup::open(path).is_ok_and(|cgroup| cgroup.is_root())
}

/// The policies of a process's cgroup and of those above it, its own first; or why they cannot be found out.
pub(crate) fn policies_of(pid: i32) -> Result<Vec<InForce>, String> {
    let root = host::cgroup_root().ok_or(host::NO_CGROUPS)?;
    let own =
        host::cgroup_of(&pid.to_string()).ok_or_else(|| match fs::read(format!("/proc/{pid}/cgroup")) {
            Err(error) => format!("/proc does not say which cgroup it is in: {}", reason(&error)),
            Ok(_) => "its cgroup is not of version 2".to_owned(),
        })?;
    let mut found = Vec::new();
    for path in own.ancestors().take_while(|path| path.starts_with(&root)) {
        let policies = Cgroup::open(path).and_then(|cgroup| bpf::attached(cgroup.folder.as_fd()));
        found.extend(policies.map_err(|error| refusal(&error))?.into_iter().map(|policy| InForce {
            cgroup: name(path),
            policy: ka_core::Text::typed(&policy.config).to_string(),
            mode: policy.mode.name(),
        }));
    }
    Ok(found)
}

/// Why the kernel does not say what is attached to a cgroup.
fn refusal(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "needs CAP_NET_ADMIN and CAP_SYS_ADMIN (run ka as root)".to_owned(),
        _ => reason(error),
    }
}

/// Whether what was asked has gone meanwhile: a cgroup, or a process.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH))
}

fn write_table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    const COLUMNS: [Column; 4] = [
        Column::elastic("CGROUP", 10),
        Column::left("MODE"),
        Column::left("POLICY"),
        Column::elastic("KEPT", 10),
    ];
    if rows.is_empty() {
        return writeln!(out, "no cgroup has a policy");
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let cgroup = row
                .cgroup
                .as_ref()
                .map_or("(removed)".into(), |name| text::visible(name.as_bytes()).into_owned());
            let cgroup = if row.above { format!("{cgroup} (above)") } else { cgroup };
            let kept = row.pinned.as_ref().map_or("until it ends".into(), |path| {
                text::visible(path.as_os_str().as_encoded_bytes()).into_owned()
            });
            vec![
                cgroup.into(),
                row.mode.unwrap_or("-").into(),
                row.policy.clone().unwrap_or_else(|| "-".to_owned()).into(),
                kept.into(),
            ]
        })
        .collect();
    table::write(out, Output::standard(), &COLUMNS, &cells)
}
