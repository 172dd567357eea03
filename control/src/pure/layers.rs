//! A machine's description in layers, flattened into what this version can do, or refused by name.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::fault::Fault;
use model::api::spec::{Spec, SpecFile};
use serde_json::Value;
use std::collections::BTreeMap;

/// Layers in one description. A caller's builder makes one per call; nobody writes more than a handful.
const MAX_LAYERS: usize = 32;

/// What the layers come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flat {
    /// Of the innermost layer.
    pub snapshot_id: Option<String>,
    /// Of the innermost layer.
    pub vcpu_count: Option<f64>,
    /// Of the innermost layer.
    pub mem_size_gb: Option<f64>,
    /// Of the innermost layer.
    pub rootfs_size_gb: Option<f64>,
    /// Of the outermost layer that says it.
    pub idle_timeout_seconds: Option<Option<u64>>,
    /// Of the outermost layer that says it.
    pub ready_signal_timeout_seconds: Option<u64>,
    /// Of all layers, an outer one over an inner one.
    pub files: BTreeMap<String, SpecFile>,
}

/// Flattens a description.
///
/// # Errors
/// A code of the contract for each thing that it forbids or that this version does not offer.
pub fn flatten(outermost: &Spec) -> Result<Flat, Fault> {
    let mut flat = Flat::default();
    let mut layer = outermost;
    for depth in 0..MAX_LAYERS {
        check_sources(layer, depth)?;
        refuse_unoffered(layer)?;
        flat.idle_timeout_seconds = flat.idle_timeout_seconds.or(layer.idle_timeout_seconds);
        flat.ready_signal_timeout_seconds =
            flat.ready_signal_timeout_seconds.or(layer.ready_signal_timeout_seconds);
        for (path, file) in layer.additional_files.iter().flatten() {
            flat.files.entry(path.clone()).or_insert_with(|| file.clone());
        }
        let Some(inner) = &layer.snapshot else {
            flat.snapshot_id.clone_from(&layer.snapshot_id);
            flat.vcpu_count = layer.vcpu_count;
            flat.mem_size_gb = layer.mem_size_gb;
            flat.rootfs_size_gb = layer.rootfs_size_gb;
            return Ok(flat);
        };
        layer = inner;
    }
    Err(bad(format!("the description has more than {MAX_LAYERS} layers")))
}

/// Refuses a list that has something in it.
pub fn refuse_list<T>(list: Option<&Vec<T>>, what: &str) -> Result<(), Fault> {
    if list.is_none_or(Vec::is_empty) { Ok(()) } else { Err(unoffered(what)) }
}

/// Refuses a value that says something: `{}`, `[]`, and objects of those alone say nothing.
pub fn refuse_value(value: Option<&Value>, what: &str) -> Result<(), Fault> {
    if value.is_none_or(says_nothing) { Ok(()) } else { Err(unoffered(what)) }
}

/// A working directory other than the root would change what commands and files mean.
pub fn refuse_workdir(workdir: Option<&str>) -> Result<(), Fault> {
    if workdir.is_none_or(|path| path == "/") { Ok(()) } else { Err(unoffered("workdir")) }
}

fn bad(message: String) -> Fault {
    Fault::new(400, "CREATE_VM_BAD_REQUEST", message)
}

fn unoffered(what: &str) -> Fault {
    bad(format!("{what} is not offered by this version of Gatehouse; leave it out"))
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn check_sources(layer: &Spec, depth: usize) -> Result<(), Fault> {
    let sources: Vec<&str> = [
        ("snapshot", layer.snapshot.is_some()),
        ("snapshotId", layer.snapshot_id.is_some()),
        ("baseImage", layer.base_image.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect();
    if let [first, second, ..] = sources.as_slice() {
        let message = format!("layer {depth} sets both {first} and {second}; it may set one of them");
        return Err(Fault::new(400, "CONFLICTING_SPEC_SOURCES_ERROR", message)
            .with("depth", depth)
            .with("fieldA", *first)
            .with("fieldB", *second));
    }
    let sized = [
        ("vcpuCount", layer.vcpu_count.is_some()),
        ("memSizeGb", layer.mem_size_gb.is_some()),
        ("rootfsSizeGb", layer.rootfs_size_gb.is_some()),
    ];
    let outer = sized.into_iter().find(|(_, set)| *set && layer.snapshot.is_some());
    outer.map_or(Ok(()), |(field, _)| {
        let message = format!("layer {depth} sets {field}, which only the innermost layer may");
        Err(Fault::new(400, "NON_LEAF_LAYER_FIELD_ERROR", message).with("depth", depth).with("field", field))
    })
}

fn refuse_unoffered(layer: &Spec) -> Result<(), Fault> {
    refuse_value(layer.base_image.as_ref(), "baseImage")?;
    refuse_workdir(layer.workdir.as_deref())?;
    refuse_list(layer.ports.as_ref(), "ports")?;
    refuse_value(layer.systemd.as_ref(), "systemd")?;
    refuse_list(layer.users.as_ref(), "users")?;
    refuse_list(layer.groups.as_ref(), "groups")?;
    refuse_value(layer.git.as_ref(), "git")?;
    refuse_list(layer.git_repos.as_ref(), "gitRepos")?;
    refuse_list(layer.apt_deps.as_ref(), "aptDeps")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Flat, &'static str> {
        flatten(&serde_json::from_value(value).expect("a description")).map_err(|fault| fault.code)
    }

    #[test]
    fn empty_layers_say_nothing_and_the_innermost_decides_the_size() {
        let cli =
            json!({"discriminator": "x", "aptDeps": [], "name": null, "git": {"config": {}}, "users": []});
        assert_eq!(read(cli), Ok(Flat::default()));
        let flat = read(json!({
            "idleTimeoutSeconds": null,
            "additionalFiles": {"/a": {"content": "outer"}},
            "snapshot": {"snapshot": {"vcpuCount": 2, "idleTimeoutSeconds": 5,
                "additionalFiles": {"/a": {"content": "inner"}, "/b": {"content": "b", "encoding": "utf-8"}}}}
        }))
        .expect("good");
        assert_eq!((flat.vcpu_count, flat.idle_timeout_seconds), (Some(2.0), Some(None)));
        assert_eq!(flat.files.len(), 2);
        assert_eq!(flat.files["/a"].content, "outer");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let below = read(json!({"snapshot": {"snapshot": {"snapshotId": "sc-1"}}})).expect("good");
        assert_eq!(below.snapshot_id.as_deref(), Some("sc-1"));
        assert_eq!(read(json!({"snapshot": {"aptDeps": ["git"]}})), Err("CREATE_VM_BAD_REQUEST"));
        assert_eq!(read(json!({"systemd": {"services": [{"name": "x"}]}})), Err("CREATE_VM_BAD_REQUEST"));
        assert_eq!(
            read(json!({"snapshotId": "sc-1", "snapshot": {}})),
            Err("CONFLICTING_SPEC_SOURCES_ERROR")
        );
        assert_eq!(read(json!({"memSizeGb": 4, "snapshot": {}})), Err("NON_LEAF_LAYER_FIELD_ERROR"));
        let deep = (0..40).fold(json!({}), |inner, _| json!({"snapshot": inner}));
        assert_eq!(read(deep), Err("CREATE_VM_BAD_REQUEST"));
    }
}
