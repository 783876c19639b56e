//! Finds presets by name: also by aliases, by parts of names, and by misspelled names.

use std::fmt;

use ka_core::{PRESETS, Preset, preset};

/// Aliases: names of products that contain another product, and of vendors that have only one preset. Each has the name
/// of its preset.
pub(crate) const ALIASES: [(&str, &str); 17] = [
    ("alicloud-nlb", "alibaba-nlb"),
    ("asa", "cisco-asa"),
    ("big-ip", "f5-fastl4"),
    ("cisco", "cisco-asa"),
    ("docker-swarm", "linux-ipvs"),
    ("f5", "f5-fastl4"),
    ("fortinet", "fortigate"),
    ("gcp-cloud-nat", "gcp-nat"),
    ("gcp-firewall", "gcp-vpc"),
    ("ipvs", "linux-ipvs"),
    ("juniper", "juniper-srx"),
    ("kube-proxy-ipvs", "linux-ipvs"),
    ("oci", "oci-nlb"),
    ("oracle-nlb", "oci-nlb"),
    ("palo-alto", "paloalto"),
    ("pan-os", "paloalto"),
    ("srx", "juniper-srx"),
];

/// Other names of vendors, each with the name that the presets use.
const VENDORS: [(&str, &str); 7] = [
    ("alicloud", "alibaba"),
    ("aliyun", "alibaba"),
    ("amazon", "aws"),
    ("fortinet", "fortigate"),
    ("google", "gcp"),
    ("microsoft", "azure"),
    ("oracle", "oci"),
];

/// Load balancers that end the TCP connection themselves. They ignore probes when they measure idle time, so no preset
/// helps.
const PROXIES: [&str; 5] = ["alb", "aws-alb", "aws-clb", "aws-elb", "elb"];

/// Finds the preset with this name or alias. Ignores case, and treats `-`, `_` and blanks as equal.
pub(crate) fn named(typed: &str) -> Result<&'static Preset, Unknown> {
    let name = typed.trim().to_lowercase().replace(['_', ' '], "-");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, name)| name);
    preset(alias.as_bytes()).ok_or_else(|| Unknown {
        typed: typed.to_owned(),
        is_proxy: PROXIES.contains(&name.as_str()),
        candidates: candidates(&name),
    })
}

/// The error for a name that no preset has.
#[derive(Debug)]
pub(crate) struct Unknown {
    typed: String,
    is_proxy: bool,
    candidates: Vec<&'static str>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no such preset", self.typed.escape_debug())?;
        if self.is_proxy {
            f.write_str(
                "; this load balancer ends the TCP connection itself, and ignores probes when it measures idle time",
            )?;
        } else if !self.candidates.is_empty() {
            write!(f, "; did you mean {}?", self.candidates.join(", "))?;
            return f.write_str(" All presets: ka plan --list");
        }
        f.write_str("; all presets: ka plan --list")
    }
}

/// Returns the presets that a name may mean: those that share the most words, or beginnings of words, with the name.
fn candidates(name: &str) -> Vec<&'static str> {
    let words: Vec<_> = name
        .split('-')
        .filter(|word| word.len() > 1)
        .map(|word| VENDORS.iter().find(|(other, _)| *other == word).map_or(word, |(_, vendor)| vendor))
        .collect();
    let shared = |preset: &Preset| {
        let is_shared =
            |word: &&str| words.iter().any(|typed| word.starts_with(typed) || typed.starts_with(word));
        preset.name.split('-').filter(is_shared).count()
    };
    let most = PRESETS.iter().map(shared).max().filter(|most| *most > 0);
    PRESETS.iter().filter(|preset| Some(shared(preset)) == most).map(|preset| preset.name).collect()
}

#[cfg(test)]
mod tests {
    use ka_core::PRESETS;

    use super::{ALIASES, named};

    fn unknown(name: &str) -> String {
        named(name).unwrap_err().to_string()
    }

    #[test]
    fn aliases_name_presets_and_do_not_hide_one() {
        for (alias, name) in ALIASES {
            assert_eq!(named(alias).unwrap().name, name);
            assert!(PRESETS.iter().all(|preset| preset.name != alias), "{alias}");
        }
        assert_eq!(named("AWS_NLB").unwrap().name, "aws-nlb");
        assert_eq!(named("docker-swarm").unwrap().path_idle_s, 900);
    }

    #[test]
    fn unknown_presets_get_suggestions() {
        for (name, candidates) in [
            ("gcp", "gcp-nat, gcp-vpc"),
            ("google", "gcp-nat, gcp-vpc"),
            ("azure", "azure-firewall, azure-lb, azure-nat"),
            ("aws", "aws-gwlb, aws-nat, aws-network-firewall, aws-nitro-v6, aws-nlb"),
            ("amazon-nat", "aws-nat"),
            ("nat", "aws-nat, azure-nat, gcp-nat"),
            ("fortigat", "fortigate"),
            ("fortinet-ngfw", "fortigate"),
        ] {
            let message =
                format!("{name}: no such preset; did you mean {candidates}? All presets: ka plan --list");
            assert_eq!(unknown(name), message);
        }
        assert_eq!(unknown("x"), "x: no such preset; all presets: ka plan --list");
        assert_eq!(unknown("\u{1b}"), "\\u{1b}: no such preset; all presets: ka plan --list");
        assert!(unknown("aws-alb").contains("ends the TCP connection itself"));
    }
}
