//! Reaching every layer that can hold an adapter, whatever module it stands in.
//!
//! Burn's mappers and visitors see parameters, not layers, and an empty slot has no parameter. So the layers of
//! this crate ask, when they are mapped or visited, whether [`edit_layers`] or [`visit_layers`] has sent the
//! traversal: these leave what is to be done in a variable of the thread, with the path as it grows.

use std::cell::RefCell;
use std::rc::Rc;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use super::shape::{LayerKind, LayerParams, LayerShape};
use super::slot::AdapterSlot;
use crate::weight::FrozenWeight;

/// A layer that can hold an adapter.
pub(crate) trait AdaptedLayer {
    fn shape(&self) -> LayerShape;
    /// The layer's own parameters. Those of a tied output are the embedding's, see [`Walk::embedding`].
    fn params(&self) -> LayerParams;
    fn slot(&self) -> &AdapterSlot;
    fn slot_mut(&mut self) -> &mut AdapterSlot;
    /// Whether it projects to the vocabulary by the weight of the embedding before it.
    fn is_tied(&self) -> bool {
        false
    }
    /// Adds what acts to the layer's own parameters, and takes all adapters out.
    fn merge(&mut self);
    /// Lets the layer's own parameters be trained no more.
    fn freeze_base(&mut self);
    /// The layer's own weight, if that is a matrix.
    fn weight_mut(&mut self) -> Option<&mut FrozenWeight> {
        None
    }
}

/// What is told of a layer beside itself.
pub(crate) struct Place<'a> {
    /// The path in the module tree, without the names of types that leave no trace.
    pub path: &'a str,
    /// The layer's own parameters; those of the embedding for a tied output.
    pub params: LayerParams,
    /// The path of the layer that has these parameters.
    pub base_path: &'a str,
}

impl Place<'_> {
    /// The device of the layer's own parameters.
    pub fn device(&self) -> Device {
        let LayerParams {
            weight,
            norm_weight,
            ..
        } = &self.params;
        let of_weight = weight.as_ref().map(FrozenWeight::device);
        let device = of_weight.or_else(|| Some(norm_weight.as_ref()?.lazy_device()));
        device.unwrap_or_default()
    }
}

type Edit = dyn FnMut(&Place<'_>, &mut dyn AdaptedLayer);
type Inspect = dyn FnMut(&Place<'_>, &dyn AdaptedLayer);

enum Task {
    Edit(Rc<RefCell<Edit>>),
    Inspect(Rc<RefCell<Inspect>>),
}

struct Walk {
    task: Task,
    levels: Vec<String>,
    /// Path and parameters of the last embedding, which a tied output after it uses.
    embedding: (String, LayerParams),
}

thread_local! {
    static WALK: RefCell<Option<Walk>> = const { RefCell::new(None) };
}

/// Ends the walk, also if what it calls panics.
struct Guard;

impl Guard {
    fn begin(task: Task) -> Self {
        WALK.with_borrow_mut(|walk| {
            *walk = Some(Walk {
                task,
                levels: Vec::new(),
                embedding: Default::default(),
            });
        });
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        WALK.with_borrow_mut(|walk| *walk = None);
    }
}

/// Calls `edit` with every layer of a module that can hold an adapter, in the module's order.
pub(crate) fn edit_layers<M: Module>(
    model: M,
    edit: impl FnMut(&Place<'_>, &mut dyn AdaptedLayer) + 'static,
) -> M {
    let _guard = Guard::begin(Task::Edit(Rc::new(RefCell::new(edit))));
    model.map(&mut Follow)
}

/// Calls `inspect` with every layer of a module that can hold an adapter, in the module's order.
pub(crate) fn visit_layers<M: Module>(
    model: &M,
    inspect: impl FnMut(&Place<'_>, &dyn AdaptedLayer) + 'static,
) {
    let _guard = Guard::begin(Task::Inspect(Rc::new(RefCell::new(inspect))));
    model.visit(&mut Follow);
}

/// What `f` makes of every layer of a module that can hold an adapter, in the module's order.
pub(crate) fn collect_layers<M: Module, T: 'static>(
    model: &M,
    f: impl Fn(&Place<'_>, &dyn AdaptedLayer) -> Option<T> + 'static,
) -> Vec<T> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let sink = found.clone();
    visit_layers(model, move |place, layer| {
        sink.borrow_mut().extend(f(place, layer));
    });
    found.take()
}

/// For a layer's `map`: whether it was edited, and is not to be mapped.
pub(crate) fn edited(layer: &mut dyn AdaptedLayer) -> bool {
    let edit = WALK.with_borrow(|walk| match walk.as_ref().map(|walk| &walk.task) {
        Some(Task::Edit(edit)) => Some(edit.clone()),
        _ => None,
    });
    let Some(edit) = edit else { return false };
    at_place(layer.is_tied(), layer.params(), layer.shape(), |place| {
        (edit.borrow_mut())(place, layer);
    });
    true
}

/// For a layer's `visit`: whether it was inspected, and is not to be visited.
pub(crate) fn inspected(layer: &dyn AdaptedLayer) -> bool {
    let inspect = WALK.with_borrow(|walk| match walk.as_ref().map(|walk| &walk.task) {
        Some(Task::Inspect(inspect)) => Some(inspect.clone()),
        _ => None,
    });
    let Some(inspect) = inspect else { return false };
    at_place(layer.is_tied(), layer.params(), layer.shape(), |place| {
        (inspect.borrow_mut())(place, layer);
    });
    true
}

/// Takes the walk away while `f` runs, so that modules that it maps are mapped.
fn at_place(is_tied: bool, own: LayerParams, shape: LayerShape, f: impl FnOnce(&Place<'_>)) {
    let Some(mut walk) = WALK.take() else { return };
    let path = walk.levels.join(".");
    if shape.kind == LayerKind::Embedding {
        walk.embedding = (path.clone(), own.clone());
    }
    let (base_path, params) = match is_tied {
        true => walk.embedding.clone(),
        false => (path.clone(), own),
    };
    f(&Place {
        path: &path,
        params,
        base_path: &base_path,
    });
    WALK.set(Some(walk));
}

/// Keeps the path of a walk.
struct Follow;

impl Follow {
    fn enter(name: &str) {
        WALK.with_borrow_mut(|walk| {
            walk.iter_mut()
                .for_each(|walk| walk.levels.push(name.to_owned()))
        });
    }

    fn exit() {
        WALK.with_borrow_mut(|walk| walk.iter_mut().for_each(|walk| drop(walk.levels.pop())));
    }
}

impl ModuleMapper for Follow {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        Self::enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        Self::exit();
    }
}

impl ModuleVisitor for Follow {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        Self::enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        Self::exit();
    }
}
