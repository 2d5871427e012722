//! Tensors that have a size and no numbers, as those of PyTorch's meta device, and the bytes that they would take:
//! what a training step holds, found without computing it. Each operation says beside its definition what it
//! keeps: as a [`MetaOp`], or, for what stands in a linear layer's place, as a [`Kept`](super::Kept).

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;

/// The bytes of a number in adapters and sums.
pub(crate) const F32: usize = size_of::<f32>();

/// Bytes in use, by purpose.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    pub activations: u64,
    pub loss: u64,
    pub gradients: u64,
}

impl Held {
    pub fn total(&self) -> u64 {
        self.activations + self.loss + self.gradients
    }

    fn of(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Activations => &mut self.activations,
            Purpose::Loss => &mut self.loss,
            Purpose::Gradients => &mut self.gradients,
        }
    }
}

/// What a buffer is for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Purpose {
    #[default]
    Activations,
    Loss,
    Gradients,
}

/// The bytes of a number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NumberSizes {
    /// Of activations.
    pub activation: usize,
    /// Of activations that only the backward pass reads.
    pub narrowed: usize,
    /// Of base weights.
    pub weight: usize,
}

/// Counts the bytes of meta tensors, and holds their graph.
#[derive(Clone)]
pub(crate) struct Ledger(Rc<State>);

struct State {
    sizes: NumberSizes,
    trains_base: bool,
    live: Cell<Held>,
    peak: Cell<Held>,
    purpose: Cell<Purpose>,
    has_graph: Cell<bool>,
    nodes: Cell<usize>,
    steps: RefCell<Vec<Step>>,
}

impl Ledger {
    pub fn new(sizes: NumberSizes, trains_base: bool) -> Self {
        Self(Rc::new(State {
            sizes,
            trains_base,
            live: Cell::default(),
            peak: Cell::default(),
            purpose: Cell::default(),
            has_graph: Cell::new(true),
            nodes: Cell::new(0),
            steps: RefCell::default(),
        }))
    }

    /// Forgets the graph, whose tensors hold the ledger.
    pub fn clear(&self) {
        self.0.steps.take();
    }

    /// What is in use.
    pub fn live(&self) -> Held {
        self.0.live.get()
    }

    /// The most that was in use since the last call.
    pub fn take_peak(&self) -> Held {
        self.0.peak.replace(self.live())
    }

    /// What new activations are for.
    pub fn set_purpose(&self, purpose: Purpose) {
        self.0.purpose.set(purpose);
    }

    /// `f` without a graph.
    pub fn without_graph<T>(&self, f: impl FnOnce() -> T) -> T {
        let before = self.0.has_graph.replace(false);
        let result = f();
        self.0.has_graph.set(before);
        result
    }

    pub fn activation_size(&self) -> usize {
        self.0.sizes.activation
    }

    /// A parameter of the base.
    pub fn base_param<const D: usize>(&self, param: &Param<Tensor<D>>) -> MetaParam {
        MetaParam::new(param, self.0.sizes.weight, self.0.trains_base)
    }

    /// A packed weight.
    pub fn packed_param(&self, id: ParamId, [rows, columns]: [usize; 2]) -> MetaParam {
        MetaParam {
            id,
            numbers: rows * columns,
            number_size: self.0.sizes.weight,
            copy_size: 0,
            is_trained: false,
        }
    }

    /// A tensor outside of the graph, `[rows, width]`.
    pub fn tensor(&self, rows: usize, width: usize) -> MetaTensor {
        self.tensor_of(self.0.sizes.activation, rows, width)
    }

    fn tensor_of(&self, size: usize, rows: usize, width: usize) -> MetaTensor {
        let bytes = rows * width * size;
        MetaTensor {
            rows,
            width,
            buffer: Rc::new(self.buffer(self.0.purpose.get(), bytes)),
            node: None,
        }
    }

    /// So many bytes for a moment.
    pub fn touch(&self, bytes: usize) {
        self.buffer(self.0.purpose.get(), bytes);
    }

    fn buffer(&self, purpose: Purpose, bytes: usize) -> Buffer {
        let (mut live, bytes) = (self.live(), bytes as u64);
        *live.of(purpose) += bytes;
        self.0.live.set(live);
        if live.total() > self.0.peak.get().total() {
            self.0.peak.set(live);
        }
        Buffer {
            ledger: self.clone(),
            purpose,
            bytes,
        }
    }

    fn node(&self, depth: usize) -> Node {
        let id = self.0.nodes.get();
        self.0.nodes.set(id + 1);
        Node { id, depth }
    }

    /// Sends `grad` back from `output` as Burn's autodiff does, deepest operations first: the gradients of parameters
    /// go to `params`, that of `leaf` is returned. What led to `output` is used up.
    pub fn backward(
        &self,
        output: MetaTensor,
        grad: MetaTensor,
        leaf: Option<&MetaTensor>,
        params: &mut ParamGrads,
    ) -> Option<MetaTensor> {
        let node = output.node?;
        drop(output);
        let mut steps = self.take_steps(node);
        steps.sort_by_key(|step| Reverse(step.output.depth));
        let mut grads = HashMap::from([(node.id, grad)]);
        for step in steps {
            step.backward(self, &mut grads, params);
        }
        grads.remove(&leaf?.node?.id)
    }

    /// The operations that led to `node`, the last one first.
    fn take_steps(&self, node: Node) -> Vec<Step> {
        let mut found = HashSet::from([node.id]);
        let steps = self.0.steps.take().into_iter().rev();
        let (taken, mut others): (Vec<_>, Vec<_>) = steps.partition(|step| {
            let is_found = found.contains(&step.output.id);
            if is_found {
                let parents = step.parents.iter().flatten();
                found.extend(parents.map(|(id, ..)| *id));
            }
            is_found
        });
        others.reverse();
        self.0.steps.replace(others);
        taken
    }
}

/// Memory that is counted as long as it exists.
struct Buffer {
    ledger: Ledger,
    purpose: Purpose,
    bytes: u64,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut live = self.ledger.live();
        *live.of(self.purpose) -= self.bytes;
        self.ledger.0.live.set(live);
    }
}

/// What came out of an operation in the graph.
#[derive(Debug, Clone, Copy)]
struct Node {
    id: usize,
    depth: usize,
}

/// Activations, `[rows, width]`, a row for each token. Clones share the memory.
#[derive(Clone)]
pub(crate) struct MetaTensor {
    pub rows: usize,
    pub width: usize,
    buffer: Rc<Buffer>,
    node: Option<Node>,
}

impl MetaTensor {
    pub fn ledger(&self) -> &Ledger {
        &self.buffer.ledger
    }

    pub fn bytes(&self) -> usize {
        self.buffer.bytes as usize
    }

    /// Whether it has a gradient.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// Another tensor for the same tokens, outside of the graph.
    pub fn beside(&self, width: usize) -> Self {
        self.ledger().tensor(self.rows, width)
    }

    /// What is kept of it where only the backward pass reads it.
    fn narrowed(self) -> Self {
        let NumberSizes {
            activation,
            narrowed,
            ..
        } = self.ledger().0.sizes;
        match narrowed < activation {
            true => self.ledger().tensor_of(narrowed, self.rows, self.width),
            false => self,
        }
    }

    /// What the backward pass makes of [`Self::narrowed`].
    fn widened(self) -> Self {
        let bytes = self.rows * self.width * self.ledger().activation_size();
        match self.bytes() < bytes {
            true => self.beside(self.width),
            false => self,
        }
    }

    /// The same outside of the graph.
    pub fn detach(mut self) -> Self {
        self.node = None;
        self
    }

    /// The same as a leaf of the graph.
    pub fn leaf(mut self) -> Self {
        self.node = Some(self.ledger().node(0));
        self
    }

    /// `self + other`, in the place of either, if nothing else holds it. Its gradient is that of both.
    pub fn add(self, other: Self) -> Self {
        MetaOp::of([self, other]).shares_gradient().in_place()
    }
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetaParam {
    id: ParamId,
    pub numbers: usize,
    /// The bytes of one of them.
    pub number_size: usize,
    /// The bytes of one of them in the copies that a method forms: none, if the weight is packed.
    pub copy_size: usize,
    pub is_trained: bool,
}

impl MetaParam {
    /// One of an adapter.
    pub fn of_adapter<const D: usize>(param: &Param<Tensor<D>>, is_trained: bool) -> Self {
        Self::new(param, F32, is_trained)
    }

    fn new<const D: usize>(param: &Param<Tensor<D>>, number_size: usize, is_trained: bool) -> Self {
        Self {
            id: param.id,
            numbers: param.lazy_shape().num_elements(),
            number_size,
            copy_size: F32,
            is_trained,
        }
    }
}

/// The gradients of parameters.
#[derive(Default)]
pub(crate) struct ParamGrads(HashMap<ParamId, Buffer>);

impl ParamGrads {
    /// Adds others, in the places of those that are there.
    pub fn add(&mut self, others: Self) {
        for (id, grad) in others.0 {
            self.0.entry(id).or_insert(grad);
        }
    }

    fn form(&mut self, ledger: &Ledger, param: &MetaParam, formed: usize) {
        let formed = ledger.buffer(Purpose::Gradients, formed);
        let grad = ledger.buffer(Purpose::Gradients, param.numbers * param.number_size);
        drop(formed);
        self.0.entry(param.id).or_insert(grad);
    }
}

/// Where the gradients of an operation's inputs are.
enum Gradients {
    /// In memory of their own.
    New,
    /// In the places of the kept tensors, one for each input.
    OfKept,
    /// In that of the output's gradient, which they are.
    OfOutput,
}

/// An operation, as far as memory goes. Nothing is kept by one without a gradient.
#[must_use]
pub(crate) struct MetaOp {
    ledger: Ledger,
    rows: usize,
    inputs: Vec<MetaTensor>,
    params: Vec<(MetaParam, usize)>,
    kept: Vec<MetaTensor>,
    narrowed: Vec<MetaTensor>,
    kept_for_params: Vec<MetaTensor>,
    keeps_output: bool,
    gradients: Gradients,
    formed_first: usize,
    formed_in_backward: usize,
}

impl MetaOp {
    /// An operation on these.
    pub fn of<const N: usize>(inputs: [MetaTensor; N]) -> Self {
        Self::of_all(inputs.into())
    }

    /// The same of any number, of one at least.
    pub fn of_all(inputs: Vec<MetaTensor>) -> Self {
        let first = &inputs[0];
        Self {
            ledger: first.ledger().clone(),
            rows: first.rows,
            inputs,
            params: Vec::new(),
            kept: Vec::new(),
            narrowed: Vec::new(),
            kept_for_params: Vec::new(),
            keeps_output: false,
            gradients: Gradients::New,
            formed_first: 0,
            formed_in_backward: 0,
        }
    }

    /// With so many rows, where they are not those of the inputs.
    pub fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// With a parameter; beside its gradient the backward pass forms so many bytes.
    pub fn trains(mut self, param: MetaParam, formed: usize) -> Self {
        if param.is_trained {
            self.params.push((param, formed));
        }
        self
    }

    /// Keeps a tensor until the gradients of its inputs are formed.
    pub fn keeps(mut self, tensor: &MetaTensor) -> Self {
        self.kept.push(tensor.clone());
        self
    }

    /// The same of one that nothing but the backward pass reads then: it is kept in fewer bits, where such are.
    pub fn keeps_narrowed(mut self, tensor: &MetaTensor) -> Self {
        self.narrowed.push(tensor.clone());
        self
    }

    /// Keeps a tensor, on a condition, until the gradients of its parameters are formed: those of its inputs come
    /// after.
    pub fn keeps_for_params(mut self, tensor: &MetaTensor, is_needed: bool) -> Self {
        if is_needed {
            self.kept_for_params.push(tensor.clone());
        }
        self
    }

    /// Keeps the output.
    pub fn keeps_output(mut self) -> Self {
        self.keeps_output = true;
        self
    }

    /// The gradients take the places of the kept tensors.
    pub fn reuses_kept(mut self) -> Self {
        self.gradients = Gradients::OfKept;
        self
    }

    /// The gradients of the inputs are that of the output.
    pub fn shares_gradient(mut self) -> Self {
        self.gradients = Gradients::OfOutput;
        self
    }

    /// The backward pass forms so many bytes before the gradients of its parameters.
    pub fn forms_first(mut self, bytes: usize) -> Self {
        self.formed_first = bytes;
        self
    }

    /// The backward pass forms so many bytes beside the gradients of its inputs.
    pub fn forms_in_backward(mut self, bytes: usize) -> Self {
        self.formed_in_backward = bytes;
        self
    }

    /// The output in memory of its own.
    pub fn output(self, width: usize) -> MetaTensor {
        let out = self.ledger.tensor(self.rows, width);
        self.record(out)
    }

    /// The output in the place of an input that nothing else holds, else in memory of its own.
    pub fn in_place(self) -> MetaTensor {
        let is_free = |input: &&MetaTensor| Rc::strong_count(&input.buffer) == 1;
        let free = self.inputs.iter().find(is_free).cloned();
        let width = self.inputs[0].width;
        let out = free.unwrap_or_else(|| self.ledger.tensor(self.rows, width));
        self.record(out.detach())
    }

    fn record(mut self, mut out: MetaTensor) -> MetaTensor {
        let depths = self
            .inputs
            .iter()
            .filter_map(|input| Some(input.node?.depth));
        let depth = depths.max();
        let is_tracked = depth.is_some() || !self.params.is_empty();
        if !is_tracked || !self.ledger.0.has_graph.get() {
            return out;
        }
        let narrowed = self.narrowed.into_iter();
        self.kept.extend(narrowed.map(MetaTensor::narrowed));
        if self.keeps_output {
            self.kept.push(out.clone());
        }
        let node = self.ledger.node(depth.unwrap_or(0) + 1);
        let parents = self.inputs.iter();
        let step = Step {
            output: node,
            parents: parents
                .map(|input| Some((input.node?.id, input.rows, input.width)))
                .collect(),
            params: self.params,
            kept: self.kept,
            kept_for_params: self.kept_for_params,
            gradients: self.gradients,
            formed_first: self.formed_first,
            formed_in_backward: self.formed_in_backward,
        };
        self.ledger.0.steps.borrow_mut().push(step);
        out.node = Some(node);
        out
    }
}

/// An operation in the graph.
struct Step {
    output: Node,
    /// The inputs that have a gradient: node, rows and width.
    parents: Vec<Option<(usize, usize, usize)>>,
    params: Vec<(MetaParam, usize)>,
    kept: Vec<MetaTensor>,
    kept_for_params: Vec<MetaTensor>,
    gradients: Gradients,
    formed_first: usize,
    formed_in_backward: usize,
}

impl Step {
    fn backward(
        self,
        ledger: &Ledger,
        grads: &mut HashMap<usize, MetaTensor>,
        params: &mut ParamGrads,
    ) {
        let Some(grad) = grads.remove(&self.output.id) else {
            return;
        };
        let kept: Vec<_> = self.kept.into_iter().map(MetaTensor::widened).collect();
        ledger.touch(self.formed_first);
        for (param, formed) in &self.params {
            params.form(ledger, param, *formed);
        }
        drop(self.kept_for_params);
        let has_parent = self.parents.iter().any(Option::is_some);
        let formed = usize::from(has_parent) * self.formed_in_backward;
        let formed = ledger.buffer(ledger.0.purpose.get(), formed);
        let parents = self.parents.iter().enumerate();
        let formed_grads: Vec<_> = parents
            .filter_map(|(index, parent)| {
                let (node, rows, width) = (*parent)?;
                let grad = match self.gradients {
                    Gradients::New => ledger.tensor(rows, width),
                    Gradients::OfKept => kept[index].clone(),
                    Gradients::OfOutput => grad.clone(),
                };
                Some((node, grad))
            })
            .collect();
        drop((formed, kept, grad));
        for (node, grad) in formed_grads {
            let sum = match grads.remove(&node) {
                None => grad,
                Some(other) => grad.detach().add(other.detach()),
            };
            grads.insert(node, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a tensor of these tests.
    const SIZE: u64 = 2 * 3 * 4;

    fn ledger_and_tensor() -> (Ledger, MetaTensor) {
        let sizes = NumberSizes {
            activation: F32,
            narrowed: F32,
            weight: F32,
        };
        let ledger = Ledger::new(sizes, false);
        let tensor = ledger.tensor(2, 3);
        (ledger, tensor)
    }

    /// An operation that keeps its input.
    fn keep(x: MetaTensor) -> MetaTensor {
        MetaOp::of([x.clone()]).keeps(&x).output(x.width)
    }

    #[test]
    fn a_sum_takes_the_place_of_what_nothing_else_holds() {
        let (ledger, x) = ledger_and_tensor();
        let y = x.beside(3);
        let held = x.clone();
        let sum = x.add(y);
        assert_eq!(ledger.live().total(), 2 * SIZE);
        let both = held.clone().add(sum.clone());
        assert_eq!(ledger.live().total(), 3 * SIZE);
        drop((held, sum, both));
        assert_eq!(ledger.live().total(), 0);
    }

    #[test]
    fn nothing_is_kept_without_a_gradient() {
        let (ledger, x) = ledger_and_tensor();
        let y = keep(x.clone());
        drop(x);
        assert_eq!(ledger.live().total(), SIZE);
        let _z = ledger.without_graph(|| keep(y.leaf()));
        assert_eq!(ledger.live().total(), SIZE);
    }

    #[test]
    fn a_backward_pass_uses_up_what_led_to_its_output() {
        let (ledger, x) = ledger_and_tensor();
        let [first, second] = [x.beside(3).leaf(), x.leaf()];
        let outputs = [keep(first), keep(second.clone())];
        let mut params = ParamGrads::default();
        ledger.take_peak();
        let [other, output] = outputs;
        let grad = output.beside(3);
        let grad = ledger.backward(output, grad, Some(&second), &mut params);
        // Two inputs, the output of the other, and the gradients of this output and of its input.
        assert_eq!(ledger.take_peak().total(), 5 * SIZE);
        drop((grad, second));
        assert_eq!(ledger.live().total(), 2 * SIZE);
        let grad = other.beside(3);
        assert!(ledger.backward(other, grad, None, &mut params).is_none());
        assert_eq!(ledger.live().total(), 0);
    }
}
