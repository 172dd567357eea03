//! From the body of `POST /v1/vms` to a VM that can be made, or to the contract's word for why not.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::host;
use super::layers::{self, Flat, refuse_list, refuse_value, refuse_workdir};
use super::vpc;
use crate::fault::Fault;
use crate::store::{NewMapping, NewNic, SnapshotRecord, SnapshotState};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::agent::MAX_FILE_BYTES;
use model::api::file::Encoding;
use model::api::spec::SpecFile;
use model::api::vm::{CreateVm, DEFAULT_IDLE_TIMEOUT_SECONDS, Persistence};
use model::config::{VmLimits, VmSize};
use model::host::HostName;
use model::id::SnapshotId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the agent may take to report after a boot, if the caller does not say. An emulated machine takes a minute.
pub const DEFAULT_READY_WAIT: Duration = Duration::from_secs(180);
/// Longest that a caller may have us wait for the agent.
const MAX_READY_WAIT: Duration = Duration::from_secs(1800);
/// Smallest memory: a Debian kernel with its initramfs needs it.
pub(super) const MIN_MEMORY_MIB: u32 = 128;
/// Smallest root file system.
const MIN_DISK_MIB: u32 = 256;
/// Characters of a VM's label.
pub const MAX_NAME_CHARS: usize = 256;
/// Names that may be mapped to a VM when it is made.
const MAX_DOMAINS: usize = 64;
/// Files that may be put into a VM when it is made.
const MAX_FILES: usize = 256;

/// What is wrong with a creation, when nothing says it better.
const BAD_REQUEST: &str = "CREATE_VM_BAD_REQUEST";

/// A file to put into a new VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedFile {
    /// Absolute path.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// A VM that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A label.
    pub name: Option<String>,
    /// What it begins with, and the image that this was made from.
    pub origin: Option<(SnapshotId, String)>,
    /// How large it is.
    pub size: VmSize,
    /// Suspend after so long without traffic; never when absent.
    pub idle_timeout_seconds: Option<u64>,
    /// Bytes within that time which count as traffic.
    pub activity_threshold_bytes: Option<u64>,
    /// What becomes of it when nobody uses it.
    pub persistence: Persistence,
    /// Names to map to it.
    pub mappings: Vec<NewMapping>,
    /// Its NIC in a VPC; in the default network when absent.
    pub nic: Option<NewNic>,
    /// It goes on from a state in which its disk was smaller.
    pub grows: bool,
    /// Files to put into it.
    pub files: Vec<WantedFile>,
    /// How long its agent may take to report.
    pub ready_wait: Duration,
}

/// The snapshot that is named, wherever the package puts it.
///
/// # Errors
/// `INVALID_SNAPSHOT_ID`, and what [`read`] refuses of the layers.
pub fn source(request: &CreateVm) -> Result<Option<SnapshotId>, Fault> {
    let (flat, _) = layers_of(request)?;
    match (&request.snapshot_id, &flat.snapshot_id) {
        (Some(one), Some(other)) if one != other => {
            Err(bad("snapshotId and the description name two snapshots; name one".to_owned()))
        }
        (Some(id), _) | (None, Some(id)) => snapshot_id(id).map(Some),
        (None, None) => Ok(None),
    }
}

/// A snapshot's id.
///
/// # Errors
/// `INVALID_SNAPSHOT_ID`.
pub fn snapshot_id(text: &str) -> Result<SnapshotId, Fault> {
    text.parse()
        .map_err(|error: model::id::IdError| Fault::new(400, "INVALID_SNAPSHOT_ID", error.to_string()))
}

/// Refuses a snapshot from which nothing can be made.
///
/// # Errors
/// The contract's word for why.
pub fn usable(snapshot: &SnapshotRecord) -> Result<(), Fault> {
    let id = snapshot.id.as_str();
    let (status, code, what) = match snapshot.state {
        _ if snapshot.deleted => (410, "SOURCE_SNAPSHOT_DELETED", "is deleted"),
        SnapshotState::Building => (409, "SOURCE_SNAPSHOT_BUILDING", "is being made; try again later"),
        SnapshotState::Failed => (409, "SOURCE_SNAPSHOT_LOST", "could not be made"),
        SnapshotState::Ready => return Ok(()),
    };
    let fault = Fault::new(status, code, format!("the snapshot {id} {what}")).with("snapshotId", id);
    Err(match &snapshot.failure {
        Some(failure) => fault.with("reason", failure.as_str()),
        None => fault,
    })
}

/// A label.
///
/// # Errors
/// The given code when it is too long.
pub fn name(name: Option<String>, code: &'static str) -> Result<Option<String>, Fault> {
    if name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME_CHARS) {
        return Err(Fault::new(400, code, format!("name is longer than {MAX_NAME_CHARS} characters")));
    }
    Ok(name)
}

/// What becomes of a VM or snapshot that nobody uses.
///
/// # Errors
/// The given code when the priority is none.
pub fn persistence(wanted: Persistence, code: &'static str) -> Result<Persistence, Fault> {
    if matches!(wanted, Persistence::Sticky { priority: Some(11..) }) {
        return Err(Fault::new(400, code, "persistence.priority must be within 0 and 10"));
    }
    Ok(wanted)
}

/// Reads the request; `base` is the snapshot that [`source`] found in it.
///
/// # Errors
/// A code of the contract for each thing that is wrong or not offered.
pub fn read(
    request: &CreateVm,
    base: Option<&SnapshotRecord>,
    default_size: VmSize,
    limits: &VmLimits,
    domain: &HostName,
) -> Result<Wanted, Fault> {
    refuse_unoffered(request)?;
    let (flat, template_persistence) = layers_of(request)?;
    let label = request.name.clone().or_else(|| request.spec.as_ref().and_then(|spec| spec.name.clone()));
    let kept = request.persistence.clone().or(template_persistence).unwrap_or_default();
    let size = match base {
        None => size(&flat, default_size, limits)?,
        Some(base) => fitting(size(&flat, base.size, limits)?, base)?,
    };
    let idle = request.idle_timeout_seconds.or(flat.idle_timeout_seconds);
    let ready = request.ready_signal_timeout_seconds.or(flat.ready_signal_timeout_seconds);
    Ok(Wanted {
        name: name(label, BAD_REQUEST)?,
        origin: base.map(|base| (base.id.clone(), base.image.clone())),
        size,
        grows: base.is_some_and(|base| base.has_memory && size.disk_mib > base.size.disk_mib),
        idle_timeout_seconds: idle.unwrap_or(Some(DEFAULT_IDLE_TIMEOUT_SECONDS)),
        activity_threshold_bytes: request.activity_threshold_bytes,
        persistence: persistence(kept, BAD_REQUEST)?,
        mappings: mappings(request, domain)?,
        nic: vpc::nic(request)?,
        files: files(&flat.files)?,
        ready_wait: ready_wait(ready),
    })
}

/// How long to wait for the agent.
#[must_use]
pub fn ready_wait(wanted_seconds: Option<u64>) -> Duration {
    wanted_seconds.map_or(DEFAULT_READY_WAIT, Duration::from_secs).min(MAX_READY_WAIT)
}

fn bad(message: String) -> Fault {
    Fault::new(400, BAD_REQUEST, message)
}

/// A machine that goes on cannot find itself with other memory or CPUs, and no disk shrinks.
fn fitting(size: VmSize, base: &SnapshotRecord) -> Result<VmSize, Fault> {
    let id = &base.id;
    if base.has_memory && (size.vcpus, size.memory_mib) != (base.size.vcpus, base.size.memory_mib) {
        return Err(bad(format!(
            "the snapshot {id} holds a running machine of {} vCPUs and {} MiB, which cannot be changed; leave vcpuCount \
             and memSizeGb out, and resize the VM once it runs",
            base.size.vcpus, base.size.memory_mib
        )));
    }
    if size.disk_mib < base.size.disk_mib {
        let has = base.size.disk_mib;
        return Err(bad(format!("the snapshot {id} has a disk of {has} MiB, which can only grow")));
    }
    Ok(size)
}

fn layers_of(request: &CreateVm) -> Result<(Flat, Option<Persistence>), Fault> {
    let mut flat = match (&request.spec, &request.template) {
        (Some(_), Some(_)) => return Err(bad("give spec or template, not both".to_owned())),
        (Some(layers), None) | (None, Some(layers)) => layers::flatten(layers)?,
        (None, None) => Flat {
            vcpu_count: request.vcpu_count,
            mem_size_gb: request.mem_size_gb,
            rootfs_size_gb: request.rootfs_size_gb,
            ..Flat::default()
        },
    };
    flat.files.extend(request.additional_files.clone().unwrap_or_default());
    Ok((flat, request.template.as_ref().and_then(|template| template.persistence.clone())))
}

fn refuse_unoffered(request: &CreateVm) -> Result<(), Fault> {
    refuse_value(request.base_image.as_ref(), "baseImage")?;
    refuse_list(request.ports.as_ref(), "ports")?;
    refuse_list(request.udp_hole_punch_ports.as_ref(), "udpHolePunchPorts")?;
    refuse_list(request.users.as_ref(), "users")?;
    refuse_list(request.groups.as_ref(), "groups")?;
    refuse_value(request.systemd.as_ref(), "systemd")?;
    if request.git_repos.as_ref().is_some_and(|repos| !repos.is_empty())
        && request.git.as_ref().is_some_and(|git| git.get("repos").is_some_and(|repos| !repos.is_null()))
    {
        let message = "give git.repos or gitRepos, not both";
        return Err(Fault::new(400, "INVALID_GIT_REPO_SPEC_ERROR", message));
    }
    refuse_value(request.git.as_ref(), "git")?;
    refuse_list(request.git_repos.as_ref(), "gitRepos")?;
    refuse_list(request.apt_deps.as_ref(), "aptDeps")?;
    refuse_workdir(request.workdir.as_deref())?;
    if request.recreate == Some(true) {
        return Err(bad("recreate is not offered by this version of Gatehouse".to_owned()));
    }
    Ok(())
}

fn size(flat: &Flat, default: VmSize, limits: &VmLimits) -> Result<VmSize, Fault> {
    let largest = limits.largest;
    Ok(VmSize {
        vcpus: flat.vcpu_count.map_or(Ok(default.vcpus), |wanted| vcpus(wanted, largest.vcpus))?,
        memory_mib: flat
            .mem_size_gb
            .map_or(Ok(default.memory_mib), |wanted| memory(wanted, largest.memory_mib))?,
        disk_mib: flat
            .rootfs_size_gb
            .map_or(Ok(default.disk_mib), |wanted| disk(wanted, largest.disk_mib))?,
    })
}

fn vcpus(wanted: f64, max: u8) -> Result<u8, Fault> {
    let whole = whole(wanted).and_then(|whole| u8::try_from(whole).ok()).filter(|n| (1..=max).contains(n));
    let Some(count) = whole else {
        let message = format!("vcpuCount must be within 1 and {max}, got {wanted}");
        return Err(Fault::new(400, "CREATE_VM_VCPU_OUT_OF_RANGE", message)
            .with("got", wanted)
            .with("max", max));
    };
    if count.is_power_of_two() {
        return Ok(count);
    }
    let message = format!("vcpuCount must be a power of two, got {count}");
    Err(Fault::new(400, "CREATE_VM_VCPU_NOT_POWER_OF_TWO", message).with("got", count))
}

fn memory(wanted_gb: f64, max: u32) -> Result<u32, Fault> {
    let mib = mib(wanted_gb).ok_or_else(|| {
        Fault::new(400, "MEM_SIZE_TOO_LARGE", format!("memSizeGb {wanted_gb} cannot be meant"))
            .with("gotGb", wanted_gb)
    })?;
    if !(MIN_MEMORY_MIB..=max).contains(&mib) {
        let message = format!("memory must be within {MIN_MEMORY_MIB} and {max} MiB, got {mib}");
        return Err(Fault::new(400, "CREATE_VM_MEM_OUT_OF_RANGE", message)
            .with("got", mib)
            .with("min", MIN_MEMORY_MIB)
            .with("max", max));
    }
    if mib.is_power_of_two() {
        return Ok(mib);
    }
    let message = format!("memory must be a power of two in MiB, got {mib}");
    Err(Fault::new(400, "CREATE_VM_MEM_NOT_POWER_OF_TWO", message).with("got", mib))
}

fn disk(wanted_gb: f64, max: u32) -> Result<u32, Fault> {
    let mib = mib(wanted_gb).ok_or_else(|| {
        Fault::new(400, "ROOTFS_SIZE_TOO_LARGE", format!("rootfsSizeGb {wanted_gb} cannot be meant"))
            .with("gotGb", wanted_gb)
    })?;
    if (MIN_DISK_MIB..=max).contains(&mib) {
        return Ok(mib);
    }
    let message = format!("the root file system must be within {MIN_DISK_MIB} and {max} MiB, got {mib}");
    Err(Fault::new(400, "CREATE_VM_ROOTFS_OUT_OF_RANGE", message)
        .with("got", mib)
        .with("min", MIN_DISK_MIB)
        .with("max", max))
}

/// GiB, possibly a part of one, as whole MiB.
pub(super) fn mib(gib: f64) -> Option<u32> {
    whole(gib * 1024.0)
}

/// A number without a fraction that fits.
pub(super) fn whole(value: f64) -> Option<u32> {
    let fits = value.fract() == 0.0 && value >= 0.0 && value <= f64::from(u32::MAX);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked on the line above")]
    fits.then_some(value as u32)
}

fn mappings(request: &CreateVm, domain: &HostName) -> Result<Vec<NewMapping>, Fault> {
    let wanted = request.domains.as_deref().unwrap_or_default();
    if wanted.len() > MAX_DOMAINS {
        return Err(bad(format!("domains has more than {MAX_DOMAINS} entries")));
    }
    wanted
        .iter()
        .map(|wanted| {
            let (host, right) = host::mappable(&wanted.domain, domain)?;
            Ok(NewMapping { host, port: host::port(wanted.vm_port)?, right })
        })
        .collect()
}

fn files(wanted: &BTreeMap<String, SpecFile>) -> Result<Vec<WantedFile>, Fault> {
    if wanted.len() > MAX_FILES {
        return Err(bad(format!("additionalFiles has more than {MAX_FILES} entries")));
    }
    wanted.iter().map(|(path, file)| one_file(path, file)).collect()
}

fn one_file(path: &str, file: &SpecFile) -> Result<WantedFile, Fault> {
    if !path.starts_with('/') {
        return Err(bad(format!("additionalFiles: {path:?} is not an absolute path")));
    }
    let content = match file.encoding.unwrap_or_default() {
        Encoding::Utf8 => file.content.clone().into_bytes(),
        Encoding::Base64 => STANDARD
            .decode(&file.content)
            .map_err(|error| bad(format!("additionalFiles: {path:?} is not base64: {error}")))?,
    };
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(bad(format!("additionalFiles: {path:?} is larger than {MAX_FILE_BYTES} bytes")));
    }
    let mode = if file.executable == Some(true) { 0o755 } else { 0o644 };
    Ok(WantedFile { path: path.to_owned(), content, mode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const DEFAULT: VmSize = VmSize { vcpus: 4, memory_mib: 8192, disk_mib: 20480 };
    const LIMITS: VmLimits = VmLimits {
        largest: VmSize { vcpus: 8, memory_mib: 16384, disk_mib: 65536 },
        vms_per_account: 10,
        memory_mib: 32768,
        memory_storage_mib: None,
        rootfs_storage_mib: None,
        kept_vms: 100,
        snapshots_per_account: 10,
    };

    fn wanted(value: Value) -> Result<Wanted, Fault> {
        let request: CreateVm = serde_json::from_value(value).expect("a request");
        read(&request, None, DEFAULT, &LIMITS, &"style.dev".parse().expect("domain"))
    }

    fn code(value: Value) -> &'static str {
        wanted(value).expect_err("refused").code
    }

    #[test]
    fn nothing_is_enough() {
        let vm = wanted(json!({})).expect("good");
        assert_eq!((vm.size, vm.idle_timeout_seconds), (DEFAULT, Some(300)));
        assert_eq!(vm.persistence, Persistence::Sticky { priority: None });
        assert_eq!(wanted(json!({"idleTimeoutSeconds": null})).expect("good").idle_timeout_seconds, None);
    }

    #[test]
    fn sizes_come_from_the_template_as_the_package_sends_them() {
        let vm =
            wanted(json!({"template": {"vcpuCount": 2, "memSizeGb": 0.5, "rootfsSizeGb": 3}})).expect("good");
        assert_eq!(vm.size, VmSize { vcpus: 2, memory_mib: 512, disk_mib: 3072 });
        // The top level is not looked at beside a spec.
        assert_eq!(wanted(json!({"spec": {}, "vcpuCount": 3})).expect("good").size, DEFAULT);
    }

    #[test]
    fn sizes_are_refused_with_their_own_words() {
        for (field, value, expected) in [
            ("vcpuCount", 3.0, "CREATE_VM_VCPU_NOT_POWER_OF_TWO"),
            ("vcpuCount", 0.0, "CREATE_VM_VCPU_OUT_OF_RANGE"),
            ("vcpuCount", 16.0, "CREATE_VM_VCPU_OUT_OF_RANGE"),
            ("vcpuCount", 1.5, "CREATE_VM_VCPU_OUT_OF_RANGE"),
            ("memSizeGb", 3.0, "CREATE_VM_MEM_NOT_POWER_OF_TWO"),
            ("memSizeGb", 64.0, "CREATE_VM_MEM_OUT_OF_RANGE"),
            ("memSizeGb", 0.0, "CREATE_VM_MEM_OUT_OF_RANGE"),
            ("memSizeGb", 1e300, "MEM_SIZE_TOO_LARGE"),
            ("memSizeGb", -1.0, "MEM_SIZE_TOO_LARGE"),
            ("rootfsSizeGb", 100.0, "CREATE_VM_ROOTFS_OUT_OF_RANGE"),
            ("rootfsSizeGb", 1e10, "ROOTFS_SIZE_TOO_LARGE"),
        ] {
            assert_eq!(code(json!({"template": {field: value}})), expected, "{field} {value}");
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_and_never_passed_over() {
        for field in ["ports", "udpHolePunchPorts", "users", "groups", "gitRepos", "aptDeps"] {
            let item = if field == "aptDeps" { json!("git") } else { json!({"a": 1}) };
            assert_eq!(code(json!({field: [item]})), "CREATE_VM_BAD_REQUEST", "{field}");
            assert!(wanted(json!({field: []})).is_ok(), "{field}");
        }
        assert_eq!(code(json!({"recreate": true})), "CREATE_VM_BAD_REQUEST");
        assert_eq!(code(json!({"spec": {}, "template": {}})), "CREATE_VM_BAD_REQUEST");
        assert_eq!(code(json!({"gitRepos": [1], "git": {"repos": [1]}})), "INVALID_GIT_REPO_SPEC_ERROR");
        assert_eq!(code(json!({"domains": [{"domain": "a.b.style.dev"}]})), "DOMAIN_OWNERSHIP_NOT_VERIFIED");
    }

    #[test]
    fn a_snapshot_is_found_wherever_it_is_named_and_decides_the_size() {
        let id = SnapshotId::from_random([1; 20]);
        let base = |has_memory| SnapshotRecord {
            id: id.clone(),
            account: model::id::AccountId::from_random([1; 20]),
            name: None,
            source_vm: model::id::VmId::from_random([1; 20]),
            source_instance: model::id::VmInstanceId::from_random([1; 20]),
            state: SnapshotState::Ready,
            failure: None,
            deleted: false,
            files: true,
            persistence: Persistence::default(),
            image: "debian".to_owned(),
            size: VmSize { vcpus: 2, memory_mib: 1024, disk_mib: 4096 },
            has_memory,
            created_ms: 0,
        };
        let request = |body: Value| serde_json::from_value::<CreateVm>(body).expect("a request");
        for body in [
            json!({"snapshotId": id}),
            json!({"template": {"snapshotId": id}}),
            json!({"spec": {"snapshotId": id, "name": null}}),
            json!({"spec": {"snapshot": {"snapshotId": id}}, "snapshotId": id}),
        ] {
            assert_eq!(source(&request(body.clone())), Ok(Some(id.clone())), "{body}");
        }
        let refused = |body: Value| source(&request(body)).expect_err("refused").code;
        assert_eq!(refused(json!({"snapshotId": "sc-1"})), "INVALID_SNAPSHOT_ID");
        assert_eq!(refused(json!({"snapshotId": id, "template": {"snapshotId": "sc-1"}})), BAD_REQUEST);
        let sized = |body: Value, has_memory| {
            let domain = "style.dev".parse().expect("domain");
            let read = read(&request(body), Some(&base(has_memory)), DEFAULT, &LIMITS, &domain);
            read.map(|wanted| (wanted.size, wanted.grows)).map_err(|fault| fault.code)
        };
        assert_eq!(sized(json!({}), true), Ok((base(true).size, false)));
        let grown = json!({"template": {"rootfsSizeGb": 8, "memSizeGb": 1}});
        for has_memory in [true, false] {
            let size = VmSize { disk_mib: 8192, ..base(true).size };
            assert_eq!(
                sized(grown.clone(), has_memory),
                Ok((size, has_memory)),
                "one that boots grows by itself"
            );
        }
        assert_eq!(sized(json!({"template": {"rootfsSizeGb": 1}}), false), Err(BAD_REQUEST));
        for body in [json!({"template": {"memSizeGb": 2}}), json!({"template": {"vcpuCount": 4}})] {
            assert_eq!(sized(body.clone(), true), Err(BAD_REQUEST), "{body}");
            assert!(sized(body.clone(), false).is_ok(), "{body}: it boots");
        }
        let word = |record: SnapshotRecord| usable(&record).map_err(|fault| (fault.status, fault.code));
        assert_eq!(word(base(true)), Ok(()));
        let deleted = SnapshotRecord { deleted: true, ..base(true) };
        assert_eq!(word(deleted), Err((410, "SOURCE_SNAPSHOT_DELETED")));
        let building = SnapshotRecord { state: SnapshotState::Building, ..base(true) };
        assert_eq!(word(building), Err((409, "SOURCE_SNAPSHOT_BUILDING")));
        let failed = SnapshotRecord { state: SnapshotState::Failed, ..base(true) };
        assert_eq!(word(failed), Err((409, "SOURCE_SNAPSHOT_LOST")));
    }

    #[test]
    fn files_are_decoded_and_checked() {
        let vm = wanted(
            json!({"additionalFiles": {"/a": {"content": "aGk=", "encoding": "base64", "executable": true}}}),
        );
        let file = WantedFile { path: "/a".to_owned(), content: b"hi".to_vec(), mode: 0o755 };
        assert_eq!(vm.expect("good").files, [file]);
        assert_eq!(code(json!({"additionalFiles": {"a": {"content": ""}}})), "CREATE_VM_BAD_REQUEST");
        let broken = json!({"additionalFiles": {"/a": {"content": "!", "encoding": "base64"}}});
        assert_eq!(code(broken), "CREATE_VM_BAD_REQUEST");
    }

    proptest! {
        #[test]
        fn an_admitted_size_is_within_the_limits(cpus: f64, memory: f64, disk: f64) {
            let flat = Flat {
                vcpu_count: Some(cpus), mem_size_gb: Some(memory), rootfs_size_gb: Some(disk), ..Flat::default()
            };
            if let Ok(size) = size(&flat, DEFAULT, &LIMITS) {
                prop_assert!(size.vcpus <= LIMITS.largest.vcpus && size.vcpus.is_power_of_two());
                prop_assert!(size.memory_mib <= LIMITS.largest.memory_mib && size.memory_mib.is_power_of_two());
                prop_assert!(size.disk_mib <= LIMITS.largest.disk_mib);
            }
        }
    }
}
