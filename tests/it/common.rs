//! What the integration tests share. The device is the one that `BURN_DEVICE` names.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_peft::checkpoint::SafetensorsFile;
use burn_peft::data::{Batch, IGNORE_INDEX};

/// The device of all tests, with autodiff.
pub fn device() -> Device {
    Device::default().autodiff()
}

/// A path below `tests/fixtures/golden`.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(path)
}

/// A file of tensors, read as the tests need them.
pub struct Tensors(SafetensorsFile);

impl Tensors {
    pub fn open(path: impl AsRef<Path>) -> Self {
        Self(SafetensorsFile::open(path).unwrap())
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.0.shapes().into_keys().collect();
        keys.sort();
        keys
    }

    pub fn data(&self, key: &str) -> TensorData {
        self.0.read(key, DType::F32).unwrap()
    }

    pub fn floats(&self, key: &str) -> Vec<f32> {
        floats(&self.data(key))
    }

    pub fn ints(&self, key: &str) -> Vec<i32> {
        let wide = self.0.read_ints(key).unwrap();
        wide.into_iter()
            .map(|id| i32::try_from(id).unwrap())
            .collect()
    }

    pub fn shape(&self, key: &str) -> Vec<usize> {
        self.0.shapes()[key].clone()
    }

    /// A `[batch, seq]` tensor of token ids.
    pub fn ids(&self, key: &str, device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(self.ints(key), self.shape(key));
        Tensor::from_data(data, device)
    }

    /// The batch with ids and labels of these names.
    pub fn batch(&self, ids: &str, labels: &str) -> Batch {
        let [batch_size, seq_len] = self.shape(ids)[..] else {
            panic!("`{ids}` is no matrix")
        };
        batch(self.ints(ids), self.ints(labels), batch_size, seq_len)
    }

    /// The batches of `[steps, batch, seq]` ids and labels.
    pub fn batches(&self, ids: &str, labels: &str) -> Vec<Batch> {
        let [_, batch_size, seq_len] = self.shape(ids)[..] else {
            panic!("`{ids}` has not three dimensions")
        };
        let (ids, labels) = (self.ints(ids), self.ints(labels));
        let size = batch_size * seq_len;
        let steps = ids.chunks(size).zip(labels.chunks(size));
        steps
            .map(|(i, l)| batch(i.to_vec(), l.to_vec(), batch_size, seq_len))
            .collect()
    }
}

/// A batch whose rows are full.
pub fn batch(input_ids: Vec<i32>, labels: Vec<i32>, batch_size: usize, seq_len: usize) -> Batch {
    assert!(labels.iter().any(|label| *label != IGNORE_INDEX));
    Batch {
        input_ids,
        labels,
        segments: vec![vec![seq_len]; batch_size],
        batch_size,
        seq_len,
        adapters: None,
    }
}

pub fn floats(data: &TensorData) -> Vec<f32> {
    data.as_slice::<f32>().unwrap().to_vec()
}

/// The largest absolute difference; panics if the lengths differ or a number is not finite.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Asserts that a tensor equals the expected values within an absolute tolerance.
#[track_caller]
pub fn assert_close<const D: usize>(what: &str, got: Tensor<D>, expected: &[f32], tolerance: f32) {
    assert_floats_close(what, &floats(&got.into_data()), expected, tolerance);
}

#[track_caller]
pub fn assert_floats_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    let difference = max_abs_diff(got, expected);
    assert!(
        difference <= tolerance,
        "{what}: differs by {difference:e}, allowed {tolerance:e}"
    );
}
