//! `ka cgroup detach`: removes the policy of a cgroup, or of all cgroups.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufWriter, Write as _};

use ka_policy::Policy;
use ka_reach::Error;
use ka_reach::bpf::host;
use ka_reach::cgroup::{Cgroup, PinOwner, Pins, walk};
use ka_reach::escape;

use super::warn;
use crate::args;
use crate::failure::{CommandResult, FOUND};
use crate::via;

pub(super) fn detach(args: &args::CgroupDetachArgs) -> CommandResult {
    let failed = |error: Error| super::failed("detach", error);
    host::check_capabilities(&host::FOR_CGROUPS).map_err(failed)?;
    host::check_bpffs().map_err(failed)?;
    Pins::check_root().map_err(failed)?;
    let _lock = Pins::lock().map_err(failed)?;
    // The names of the cgroups whose policies are detached, by ID, and the names of the abandoned cgroups that were
    // removed.
    let (mut names, mut removed) = (HashMap::new(), Vec::new());
    let all = match &args.cgroup {
        None => {
            let all = Pins::all();
            let walked = Cgroup::named("/".as_ref()).and_then(|root| {
                let look = |cgroup: &Cgroup| {
                    if all.iter().any(|pins| pins.owner == PinOwner::Cgroup(cgroup.id)) {
                        names.insert(cgroup.id, cgroup.name());
                    } else if remove_abandoned(cgroup) {
                        removed.push(cgroup.name());
                    }
                    Ok(())
                };
                Ok(walk(&root, look)?)
            });
            match walked {
                Ok(skipped) => skipped.into_iter().for_each(|skip| warn("detach", skip)),
                Err(error) => warn("detach", error),
            }
            all
        }
        Some(name) => {
            let cgroup = Cgroup::named(name).map_err(failed)?;
            let mut pins = Pins::of(&cgroup);
            if pins.is_empty() {
                let why = if cgroup.policies().is_ok_and(|policies| !policies.is_empty()) {
                    "its policy is not pinned in this bpffs, so ka cannot detach it. The policy ends with ka run --via \
                     cgroup or ka cgroup attach --foreground, or it is pinned in another bpffs"
                } else {
                    "it has no policy of its own (ka cgroup ls lists the cgroups that have one)"
                };
                let failure = super::failed("detach", format_args!("{}: {why}", cgroup.name()));
                return Err(failure.with_status(FOUND));
            }
            // The folder of the pins has the ID of this cgroup, even if the links do not name a cgroup.
            for pins in &mut pins {
                pins.owner = PinOwner::Cgroup(cgroup.id);
            }
            names.insert(cgroup.id, cgroup.name());
            pins
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if all.is_empty() && removed.is_empty() {
        writeln!(out, "no cgroup has a policy of ka cgroup attach")?;
    }
    for pins in all {
        let policy = pins.policy().ok().flatten();
        let name = match pins.owner {
            PinOwner::Cgroup(id) => names.get(&id),
            PinOwner::Removed | PinOwner::Unknown => None,
        };
        let name = name.map_or("a cgroup that has been removed", String::as_str);
        let name = escape::visible(name.as_bytes());
        pins.release().map_err(failed)?;
        match policy {
            Some(Policy { config, mode, .. }) => {
                let mode = mode.name();
                writeln!(out, "{name}: {config}, mode {mode}, detached; open sockets keep their settings")?;
            }
            None => writeln!(out, "{name}: detached; open sockets keep their settings")?,
        }
    }
    for name in removed {
        writeln!(out, "{}: removed the empty cgroup", escape::visible(name.as_bytes()))?;
    }
    out.flush()?;
    Ok(0)
}

/// Removes an empty cgroup that `ka run --via cgroup` left behind because it was killed. Other software can give a
/// cgroup the same name, so this function checks that the cgroup has a policy of ka. Returns whether it removed the
/// cgroup.
fn remove_abandoned(cgroup: &Cgroup) -> bool {
    cgroup.path.file_name().is_some_and(via::is_abandoned)
        && cgroup.policies().is_ok_and(|policies| !policies.is_empty())
        && fs::remove_dir(&cgroup.path).is_ok()
}
