//! Middleboxes with a documented idle timeout, and the policies that keep a path through them open.

use crate::config::Config;
use crate::plan::{PlanError, plan_path};

/// A middlebox that forgets an idle TCP connection after a documented time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name: lower case, vendor first.
    pub name: &'static str,
    /// The default idle timeout in seconds. If an operator has changed it, use [`plan_path`].
    pub path_idle_s: u32,
    /// The title of the public document that states the idle timeout.
    pub source: &'static str,
    /// The address of the document.
    pub url: &'static str,
}

impl Preset {
    /// Returns the policy that [`plan_path`] computes from the idle timeout.
    ///
    /// # Errors
    /// [`PlanError::TooShort`], but every preset of [`PRESETS`] is long enough.
    pub fn plan(&self) -> Result<Config, PlanError> {
        plan_path(self.path_idle_s)
    }
}

/// Returns the preset with this name.
#[must_use]
pub fn preset(name: &[u8]) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name.as_bytes() == name)
}

/// All presets, sorted by name.
///
/// The presets are middleboxes that forward packets, for which a probe counts as traffic. A proxy terminates the TCP
/// connection and does not count probes, so no keepalive keeps it open. Examples are the AWS Classic and Application
/// Load Balancers.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "alibaba-nlb",
        path_idle_s: 900,
        source: "Terraform provider alicloud: alicloud_nlb_listener, idle_timeout",
        url: "https://github.com/aliyun/terraform-provider-alicloud/blob/master/website/docs/r/nlb_listener.html.markdown",
    },
    Preset {
        name: "aws-gwlb",
        path_idle_s: 350,
        source: "AWS: Update the TCP idle timeout for your Gateway Load Balancer listener",
        url: "https://docs.aws.amazon.com/elasticloadbalancing/latest/gateway/update-idle-timeout.html",
    },
    Preset {
        name: "aws-nat",
        path_idle_s: 350,
        source: "AWS: Troubleshoot NAT gateways, Internet connection drops after 350 seconds",
        url: "https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-troubleshooting.html",
    },
    Preset {
        name: "aws-network-firewall",
        path_idle_s: 350,
        source: "AWS Network Firewall API Reference: FlowTimeouts",
        url: "https://docs.aws.amazon.com/network-firewall/latest/APIReference/API_FlowTimeouts.html",
    },
    Preset {
        name: "aws-nitro-v6",
        path_idle_s: 350,
        source: "AWS: Best Practices for TCP Connection Management on EC2 (security groups' connection tracking)",
        url: "https://aws.amazon.com/blogs/networking-and-content-delivery/best-practices-for-tcp-connection-management-on-ec2/",
    },
    Preset {
        name: "aws-nlb",
        path_idle_s: 350,
        source: "AWS: Update the TCP idle timeout for your Network Load Balancer listener",
        url: "https://docs.aws.amazon.com/elasticloadbalancing/latest/network/update-idle-timeout.html",
    },
    Preset {
        name: "azure-firewall",
        path_idle_s: 240,
        source: "Azure Firewall: TCP session management and idle timeout behavior",
        url: "https://learn.microsoft.com/en-us/azure/firewall/tcp-session-behavior",
    },
    Preset {
        name: "azure-lb",
        path_idle_s: 240,
        source: "Azure Load Balancer: TCP Reset and Idle Timeout",
        url: "https://learn.microsoft.com/en-us/azure/load-balancer/load-balancer-tcp-reset",
    },
    Preset {
        name: "azure-nat",
        path_idle_s: 240,
        source: "Azure NAT Gateway resource",
        url: "https://learn.microsoft.com/en-us/azure/nat-gateway/nat-gateway-resource",
    },
    Preset {
        name: "cisco-asa",
        path_idle_s: 3600,
        source: "Cisco Secure Firewall ASA: connection timeouts",
        url: "https://cisco.com/c/en/us/support/docs/security/secure-firewall-asa/222075-configure-connection-timeout-for-specifi.html",
    },
    Preset {
        name: "f5-fastl4",
        path_idle_s: 300,
        source: "F5 BIG-IP AS3 schema reference: L4_Profile, idleTimeout",
        url: "https://clouddocs.f5.com/products/extensions/f5-appsvcs-extension/latest/refguide/schemaref/L4_Profile.schema.json.html",
    },
    Preset {
        name: "fortigate",
        path_idle_s: 3600,
        source: "Fortinet: Technical Tip, Default session timeout value (session-ttl)",
        url: "https://community.fortinet.com/t5/FortiGate/Technical-Tip-Default-session-timeout-value-session-ttl/ta-p/194357",
    },
    Preset {
        name: "gcp-nat",
        path_idle_s: 1200,
        source: "Google Compute Engine API v1: RouterNat, tcpEstablishedIdleTimeoutSec",
        url: "https://pub.dev/documentation/googleapis/latest/compute_v1/RouterNat/tcpEstablishedIdleTimeoutSec.html",
    },
    Preset {
        name: "gcp-vpc",
        path_idle_s: 600,
        source: "Google Compute Engine: general tips, idle connections (connection tracking of VPC firewalls)",
        url: "https://cloud.google.com/compute/docs/troubleshooting/general-tips",
    },
    Preset {
        name: "juniper-srx",
        path_idle_s: 1800,
        source: "Juniper Junos OS: Flow-Based Sessions",
        url: "https://www.juniper.net/documentation/us/en/software/junos/flow-packet-processing/topics/topic-map/security-flow-based-session-for-srx-series-devices.html",
    },
    Preset {
        name: "linux-ipvs",
        path_idle_s: 900,
        source: "Linux: net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts (kube-proxy in IPVS mode, Docker Swarm)",
        url: "https://github.com/torvalds/linux/blob/master/net/netfilter/ipvs/ip_vs_proto_tcp.c",
    },
    Preset {
        name: "oci-nlb",
        path_idle_s: 360,
        source: "Oracle Cloud Network Load Balancer: Changing a Listener's Idle Timeout",
        url: "https://docs.oracle.com/en-us/iaas/Content/NetworkLoadBalancer/NetworkLoadBalancers/configure-idle-timeout.htm",
    },
    Preset {
        name: "paloalto",
        path_idle_s: 3600,
        source: "Palo Alto Networks: Configure Session Timeouts (PAN-OS)",
        url: "https://docs.paloaltonetworks.com/ngfw/networking/session-settings-and-timeouts/configure-session-timeouts/configure-session-timeouts-pan-os",
    },
    Preset {
        name: "rfc5382",
        path_idle_s: 7440,
        source: "RFC 5382, REQ-5: a NAT must keep an idle established connection for at least 2 hours 4 minutes",
        url: "https://www.rfc-editor.org/rfc/rfc5382",
    },
];
