//! What the metadata service tells of an instance (EC2 User Guide, "Instance metadata categories" and "Dynamic data
//! categories").

use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::view::{Instance, Interface, Profile, Role};

/// The builds of the metadata that can be asked for, oldest first; every path starts with one of them or `latest`.
/// A build shows what had been introduced by its date.
pub(crate) const VERSIONS: [&str; 29] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
    LATEST,
];

/// The version that shows everything; it sorts after all others.
pub(crate) const LATEST: &str = "latest";

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A listing or a value.
    Text(Bytes),
    /// User data, as it was given.
    Data(Bytes),
}

/// What an instance finds at a path, given as its decoded segments; none is a `404`.
///
/// A directory answers with its listing, with or without a `/` at the end of the path.
pub(crate) fn lookup(instance: &Instance, path: &[impl AsRef<str>]) -> Option<Content> {
    let Some((version, rest)) = path.split_first() else {
        return Some(Content::Text(VERSIONS.join("\n").into()));
    };
    let version = *VERSIONS.iter().find(|known| **known == version.as_ref())?;
    if let [only] = rest
        && only.as_ref() == "user-data"
    {
        return instance.user_data.clone().map(Content::Data);
    }
    let tree = Tree::of(instance, version);
    tree.get(&rest.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("/")).map(Content::Text)
}

/// The leaves of the tree by path, without those that a version does not know.
struct Tree<'a> {
    version: &'a str,
    leaves: BTreeMap<String, Bytes>,
    /// What stands for a directory in its parent's listing, by its path, where that is not its name.
    labels: BTreeMap<String, String>,
}

impl<'a> Tree<'a> {
    fn of(instance: &Instance, version: &'a str) -> Self {
        let mut tree = Self { version, leaves: BTreeMap::new(), labels: BTreeMap::new() };
        tree.add_instance(instance);
        tree.add_dynamic(instance);
        if let Some(key) = &instance.public_key {
            tree.labels.insert("meta-data/public-keys/0".to_owned(), format!("0={}", key.name));
        }
        for interface in &instance.interfaces {
            tree.add_interface(interface);
        }
        if let Some(data) = &instance.user_data {
            tree.leaves.insert("user-data".to_owned(), data.clone());
        }
        tree
    }

    /// Adds a leaf that was introduced with the version `since`.
    fn add(&mut self, since: &str, path: impl Into<String>, value: impl Display) {
        if self.version >= since {
            self.leaves.insert(path.into(), value.to_string().into());
        }
    }

    fn add_instance(&mut self, instance: &Instance) {
        let mut add =
            |since, name: &str, value: &dyn Display| self.add(since, format!("meta-data/{name}"), value);
        add("1.0", "ami-id", &instance.image_id);
        add("1.0", "ami-launch-index", &instance.launch_index);
        // What an AMI that is backed by EBS has instead of a manifest.
        add("1.0", "ami-manifest-path", &"(unknown)");
        add("2007-12-15", "block-device-mapping/ami", &instance.root_device_name);
        add("2007-12-15", "block-device-mapping/root", &instance.root_device_name);
        for (n, device) in (1..).zip(&instance.volumes) {
            let name = device.strip_prefix("/dev/").unwrap_or(device);
            add("2007-12-15", &format!("block-device-mapping/ebs{n}"), &name);
        }
        add("2018-08-17", "events/maintenance/history", &"[]");
        add("2018-08-17", "events/maintenance/scheduled", &"[]");
        add("2008-09-01", "instance-action", &"none");
        if let Some(profile) = &instance.profile {
            add("2012-01-12", "iam/info", &profile_info(profile));
            if let Some(role) = &profile.role {
                let path = format!("iam/security-credentials/{}", role.name);
                add("2012-01-12", &path, &role_credentials(profile, role));
            }
        }
        add("1.0", "instance-id", &instance.id);
        add("2019-10-01", "instance-life-cycle", &"on-demand");
        add("2007-08-29", "instance-type", &instance.instance_type);
        add("2008-02-01", "placement/availability-zone", &instance.availability_zone);
        add("2019-10-01", "placement/availability-zone-id", &instance.availability_zone_id);
        add("2020-08-24", "placement/region", &instance.region);
        add("2011-01-01", "profile", &"default-hvm");
        if let Some(key) = &instance.public_key {
            add("1.0", "public-keys/0/openssh-key", &key.openssh_key.trim_end());
        }
        add("1.0", "reservation-id", &instance.reservation_id);
        add("2014-02-25", "services/domain", &instance.services_domain);
        add("2015-10-20", "services/partition", &instance.partition);
        add("2021-01-03", "system", &instance.system);
        if instance.metadata_options.instance_tags {
            // Keys that cannot be path segments are no tags of the metadata (User Guide, "Access to tags in instance
            // metadata").
            let keys = instance.tags.iter().filter(|(key, _)| {
                !key.is_empty() && !key.contains('/') && !matches!(key.as_str(), "." | ".." | "_index")
            });
            for (key, value) in keys {
                add("2021-03-23", &format!("tags/instance/{key}"), value);
            }
        }

        let Some(primary) = instance.interfaces.first() else { return };
        add("1.0", "hostname", &primary.private_dns_name());
        add("2007-01-19", "local-hostname", &primary.private_dns_name());
        add("1.0", "local-ipv4", &primary.private_ip);
        add("2011-01-01", "mac", &primary.mac);
        if let Some((ip, name)) = primary.public_ip.zip(primary.public_dns_name()) {
            add("2007-01-19", "public-hostname", &name);
            add("2007-01-19", "public-ipv4", &ip);
        }
        add("1.0", "security-groups", &lines(primary.security_groups.iter().map(|group| &group.name)));
    }

    fn add_interface(&mut self, interface: &Interface) {
        let mut add = |since, name: &str, value: &dyn Display| {
            self.add(since, format!("meta-data/network/interfaces/macs/{}/{name}", interface.mac), value);
        };
        add("2011-01-01", "device-number", &interface.device_index);
        add("2011-01-01", "interface-id", &interface.id);
        if let Some((ip, name)) = interface.public_ip.zip(interface.public_dns_name()) {
            add("2011-01-01", &format!("ipv4-associations/{ip}"), &interface.private_ip);
            add("2011-01-01", "public-hostname", &name);
            add("2011-01-01", "public-ipv4s", &ip);
        }
        add("2011-01-01", "local-hostname", &interface.private_dns_name());
        add("2011-01-01", "local-ipv4s", &interface.private_ip);
        add("2011-01-01", "mac", &interface.mac);
        // No instance type here has more than one network card.
        add("2020-11-01", "network-card-index", &0);
        add("2011-01-01", "owner-id", &interface.owner_id);
        add(
            "2011-01-01",
            "security-group-ids",
            &lines(interface.security_groups.iter().map(|group| &group.id)),
        );
        add(
            "2011-01-01",
            "security-groups",
            &lines(interface.security_groups.iter().map(|group| &group.name)),
        );
        add("2011-01-01", "subnet-id", &interface.subnet_id);
        add("2011-01-01", "subnet-ipv4-cidr-block", &interface.subnet_cidr);
        add("2011-01-01", "vpc-id", &interface.vpc_id);
        add("2011-01-01", "vpc-ipv4-cidr-block", &interface.vpc_cidr);
        add("2016-06-30", "vpc-ipv4-cidr-blocks", &interface.vpc_cidr);
    }

    fn add_dynamic(&mut self, instance: &Instance) {
        let monitoring = if instance.monitoring { "enabled" } else { "disabled" };
        self.add("2009-04-04", "dynamic/fws/instance-monitoring", monitoring);
        // Without `pkcs7`, `rsa2048` and `signature`: only AWS can sign as AWS.
        self.add("2009-04-04", "dynamic/instance-identity/document", identity_document(instance));
    }

    /// A leaf's value or a directory's listing.
    fn get(&self, path: &str) -> Option<Bytes> {
        if let Some(value) = self.leaves.get(path) {
            return Some(value.clone());
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names: Vec<String> = Vec::new();
        for below in self.leaves.range(prefix.clone()..).map_while(|(leaf, _)| leaf.strip_prefix(&prefix)) {
            let name = match below.split_once('/') {
                // The roots are listed without the mark of a directory.
                Some((child, _)) if path.is_empty() => child.to_owned(),
                Some((child, _)) => self
                    .labels
                    .get(&format!("{prefix}{child}"))
                    .cloned()
                    .unwrap_or_else(|| format!("{child}/")),
                None => below.to_owned(),
            };
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        (!names.is_empty()).then(|| names.join("\n").into())
    }
}

fn lines<'a>(items: impl Iterator<Item = &'a String>) -> String {
    items.map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// What `iam/info` tells ("Instance metadata categories").
fn profile_info(profile: &Profile) -> String {
    let updated = timestamp(profile.updated);
    spaced(&[
        ("Code", "Success"),
        ("LastUpdated", &updated),
        ("InstanceProfileArn", &profile.arn),
        ("InstanceProfileId", &profile.id),
    ])
}

/// What `iam/security-credentials/ROLE` tells (EC2 User Guide, "Retrieve security credentials from instance metadata").
fn role_credentials(profile: &Profile, role: &Role) -> String {
    let Some(credentials) = &role.credentials else {
        let message = format!("EC2 cannot assume the role {}.", role.name);
        let updated = timestamp(profile.updated);
        let code = "AssumeRoleUnauthorizedAccess";
        return spaced(&[("Code", code), ("Message", &message), ("LastUpdated", &updated)]);
    };
    let (issued, expires) = (timestamp(credentials.issued), timestamp(credentials.expires));
    spaced(&[
        ("Code", "Success"),
        ("LastUpdated", &issued),
        ("Type", "AWS-HMAC"),
        ("AccessKeyId", &credentials.access_key_id),
        ("SecretAccessKey", &credentials.secret_access_key),
        ("Token", &credentials.session_token),
        ("Expiration", &expires),
    ])
}

/// An object of texts, in this order, as the service lays JSON out.
fn spaced(members: &[(&str, &str)]) -> String {
    use serde::ser::{SerializeMap, Serializer};
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Spaced);
    let mut write = || {
        let mut map = serializer.serialize_map(Some(members.len()))?;
        for (name, value) in members {
            map.serialize_entry(name, value)?;
        }
        map.end()
    };
    write().expect("texts are always JSON");
    String::from_utf8(json).expect("JSON is UTF-8")
}

/// The instance identity document (EC2 User Guide, "Instance identity documents").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdentityDocument<'a> {
    account_id: &'a str,
    architecture: &'a str,
    availability_zone: &'a str,
    billing_products: Option<&'a [String]>,
    devpay_product_codes: Option<&'a [String]>,
    marketplace_product_codes: Option<&'a [String]>,
    image_id: &'a str,
    instance_id: &'a str,
    instance_type: &'a str,
    kernel_id: Option<&'a str>,
    pending_time: String,
    private_ip: Option<String>,
    ramdisk_id: Option<&'a str>,
    region: &'a str,
    version: &'a str,
}

fn identity_document(instance: &Instance) -> String {
    let document = IdentityDocument {
        account_id: &instance.account,
        architecture: &instance.architecture,
        availability_zone: &instance.availability_zone,
        billing_products: None,
        devpay_product_codes: None,
        marketplace_product_codes: None,
        image_id: &instance.image_id,
        instance_id: &instance.id,
        instance_type: &instance.instance_type,
        kernel_id: None,
        pending_time: timestamp(instance.launch_time),
        private_ip: instance.interfaces.first().map(|interface| interface.private_ip.to_string()),
        ramdisk_id: None,
        region: &instance.region,
        version: "2017-09-30",
    };
    let mut json = Vec::new();
    document
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced))
        .expect("strings and nulls are always JSON");
    String::from_utf8(json).expect("JSON is UTF-8")
}

fn timestamp(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_default()
}

/// JSON as the service lays it out, `"key" : value` on a line each, which scripts have come to rely on.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b"\n}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"\n  " } else { b",\n  " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b" : ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{PUBLIC_IP, instance, interface};

    fn find(instance: &Instance, path: &str) -> Option<String> {
        let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        lookup(instance, &segments).map(|content| match content {
            Content::Text(bytes) | Content::Data(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    fn value(path: &str) -> Option<String> {
        find(&instance(), path)
    }

    #[test]
    fn versions_sort_as_they_came() {
        assert!(VERSIONS.is_sorted());
        let listed = value("/").unwrap();
        assert!(listed.starts_with("1.0\n2007-01-19\n"), "{listed}");
        assert!(listed.ends_with("\n2021-03-23\n2021-07-15\n2022-09-24\n2024-04-11\nlatest"), "{listed}");
    }

    #[test]
    fn roots_are_listed_bare_and_directories_with_a_slash() {
        assert_eq!(value("/latest").unwrap(), "dynamic\nmeta-data\nuser-data");
        assert_eq!(
            value("/latest/meta-data/").unwrap().lines().collect::<Vec<_>>(),
            [
                "ami-id",
                "ami-launch-index",
                "ami-manifest-path",
                "block-device-mapping/",
                "events/",
                "hostname",
                "instance-action",
                "instance-id",
                "instance-life-cycle",
                "instance-type",
                "local-hostname",
                "local-ipv4",
                "mac",
                "network/",
                "placement/",
                "profile",
                "public-hostname",
                "public-ipv4",
                "public-keys/",
                "reservation-id",
                "security-groups",
                "services/",
                "system",
            ]
        );
        assert_eq!(value("/latest/meta-data"), value("/latest/meta-data/"));
        assert_eq!(value("/latest/dynamic").unwrap(), "fws/\ninstance-identity/");
        assert_eq!(value("/latest/dynamic/instance-identity/").unwrap(), "document");
    }

    #[test]
    fn leaves_hold_what_the_instance_is() {
        for (path, expected) in [
            ("ami-id", "ami-0123456789abcdef0"),
            ("ami-launch-index", "3"),
            ("block-device-mapping", "ami\nebs1\nebs2\nroot"),
            ("block-device-mapping/ami", "/dev/xvda"),
            ("block-device-mapping/ebs1", "sdf"),
            ("block-device-mapping/ebs2", "xvdg"),
            ("block-device-mapping/root", "/dev/xvda"),
            ("events/maintenance/scheduled", "[]"),
            ("hostname", "ip-172-31-16-5.ec2.internal"),
            ("instance-id", "i-0123456789abcdef0"),
            ("instance-life-cycle", "on-demand"),
            ("instance-type", "t3.micro"),
            ("local-ipv4", "172.31.16.5"),
            ("mac", "02:7a:00:10:20:3f"),
            ("placement", "availability-zone\navailability-zone-id\nregion"),
            ("placement/availability-zone", "us-east-1a"),
            ("placement/region", "us-east-1"),
            ("public-hostname", "ec2-198-18-0-5.compute-1.amazonaws.com"),
            ("public-ipv4", "198.18.0.5"),
            ("public-keys", "0=my key"),
            ("public-keys/0", "openssh-key"),
            ("public-keys/0/openssh-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ my key"),
            ("security-groups", "default\nweb"),
            ("services/domain", "amazonaws.com"),
            ("services/partition", "aws"),
        ] {
            assert_eq!(value(&format!("/latest/meta-data/{path}")).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn interfaces_are_found_by_their_hardware_address() {
        let macs = "/latest/meta-data/network/interfaces/macs";
        assert_eq!(value(macs).unwrap(), "02:7a:00:10:20:3f/");
        for (path, expected) in [
            ("device-number", "0"),
            ("interface-id", "eni-0123456789abcdef0"),
            ("ipv4-associations", "198.18.0.5"),
            ("ipv4-associations/198.18.0.5", "172.31.16.5"),
            ("local-hostname", "ip-172-31-16-5.ec2.internal"),
            ("local-ipv4s", "172.31.16.5"),
            ("network-card-index", "0"),
            ("owner-id", "123456789012"),
            ("public-ipv4s", "198.18.0.5"),
            ("security-group-ids", "sg-0aaaaaaaaaaaaaaaa\nsg-0bbbbbbbbbbbbbbbb"),
            ("security-groups", "default\nweb"),
            ("subnet-id", "subnet-0123456789abcdef0"),
            ("subnet-ipv4-cidr-block", "172.31.16.0/20"),
            ("vpc-id", "vpc-0123456789abcdef0"),
            ("vpc-ipv4-cidr-block", "172.31.0.0/16"),
            ("vpc-ipv4-cidr-blocks", "172.31.0.0/16"),
        ] {
            assert_eq!(
                value(&format!("{macs}/02:7a:00:10:20:3f/{path}")).as_deref(),
                Some(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn a_second_interface_has_a_directory_of_its_own_and_changes_nothing_else() {
        let mut instance = instance();
        let second = Interface {
            device_index: 1,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            private_ip: [172, 31, 16, 6].into(),
            public_ip: None,
            ..interface()
        };
        instance.interfaces.push(second.into());
        let macs = "/latest/meta-data/network/interfaces/macs";
        assert_eq!(find(&instance, macs).unwrap(), "02:00:00:00:00:01/\n02:7a:00:10:20:3f/");
        assert_eq!(find(&instance, &format!("{macs}/02:00:00:00:00:01/device-number")).unwrap(), "1");
        assert_eq!(find(&instance, &format!("{macs}/02:00:00:00:00:01/public-ipv4s")), None);
        assert_eq!(find(&instance, "/latest/meta-data/local-ipv4").unwrap(), "172.31.16.5");
    }

    #[test]
    fn what_an_instance_has_not_is_absent() {
        let mut instance = instance();
        instance.public_key = None;
        instance.user_data = None;
        instance.volumes.clear();
        instance.interfaces = vec![Interface { public_ip: None, ..interface() }.into()];
        for path in [
            "meta-data/public-keys",
            "meta-data/public-keys/0/openssh-key",
            "meta-data/public-ipv4",
            "meta-data/public-hostname",
            "meta-data/block-device-mapping/ebs1",
            "meta-data/iam",
            "meta-data/iam/security-credentials",
            "meta-data/tags",
            "meta-data/spot/instance-action",
            "meta-data/nothing",
            "meta-data/ami-id/x",
            "dynamic/instance-identity/signature",
            "user-data",
            "user-data/x",
        ] {
            assert_eq!(find(&instance, &format!("/latest/{path}")), None, "{path}");
        }
        assert_eq!(find(&instance, "/latest").unwrap(), "dynamic\nmeta-data");
        instance.interfaces.clear();
        assert_eq!(find(&instance, "/latest/meta-data/mac"), None);
        assert_eq!(find(&instance, "/latest/meta-data/ami-id").unwrap(), "ami-0123456789abcdef0");
    }

    #[test]
    fn a_version_shows_what_there_was_then() {
        assert_eq!(value("/1.0/meta-data/ami-id").unwrap(), "ami-0123456789abcdef0");
        assert_eq!(value("/1.0/meta-data/network"), None);
        assert_eq!(value("/2009-04-04/meta-data/mac"), None);
        assert!(value("/2009-04-04/meta-data/block-device-mapping/root").is_some());
        assert!(value("/2011-01-01/meta-data/mac").is_some());
        assert_eq!(value("/2018-09-24/meta-data/placement").unwrap(), "availability-zone");
        assert_eq!(
            value("/2024-04-11/meta-data/").unwrap(),
            value("/latest/meta-data/").unwrap(),
            "the newest build is the latest"
        );
        assert_eq!(value("/2010-01-01/meta-data/ami-id"), None);
        assert_eq!(value("/2010-01-01"), None);
    }

    #[test]
    fn tags_show_when_the_instance_allows_it() {
        let mut instance = instance();
        instance.metadata_options.instance_tags = true;
        assert_eq!(find(&instance, "/latest/meta-data/tags/").unwrap(), "instance/");
        assert_eq!(find(&instance, "/latest/meta-data/tags/instance").unwrap(), "Name");
        assert_eq!(find(&instance, "/latest/meta-data/tags/instance/Name").unwrap(), "my server");
        assert_eq!(find(&instance, "/2021-01-03/meta-data/tags"), None);
    }

    #[test]
    fn user_data_comes_as_it_was_given() {
        let found = lookup(&instance(), &["latest", "user-data"]);
        assert_eq!(found, Some(Content::Data((&b"#!/bin/sh\necho \xff\n"[..]).into())));
    }

    #[test]
    fn the_identity_document_is_laid_out_as_scripts_expect() {
        let document = value("/latest/dynamic/instance-identity/document").unwrap();
        assert_eq!(
            document,
            r#"{
  "accountId" : "123456789012",
  "architecture" : "x86_64",
  "availabilityZone" : "us-east-1a",
  "billingProducts" : null,
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : null,
  "imageId" : "ami-0123456789abcdef0",
  "instanceId" : "i-0123456789abcdef0",
  "instanceType" : "t3.micro",
  "kernelId" : null,
  "pendingTime" : "2026-01-31T12:00:05Z",
  "privateIp" : "172.31.16.5",
  "ramdiskId" : null,
  "region" : "us-east-1",
  "version" : "2017-09-30"
}"#
        );
    }

    #[test]
    fn public_names_follow_the_public_address() {
        let mut instance = instance();
        instance.interfaces =
            vec![Interface { public_ip: Some([198, 18, 0, 77].into()), ..interface() }.into()];
        assert_eq!(find(&instance, "/latest/meta-data/public-ipv4").unwrap(), "198.18.0.77");
        assert_ne!(
            find(&instance, "/latest/meta-data/public-hostname"),
            value("/latest/meta-data/public-hostname")
        );
        assert_eq!(find(&instance, &format!("/latest/meta-data/{PUBLIC_IP}")), None);
    }
}
