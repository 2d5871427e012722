//! An adapter's parameters as a module: a level of a path a parameter.

use burn::module::{Devices, Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Device;

use super::spec::ParamSpec;
use super::{AdapterParams, KEPT, ParamValue, TRAINED};

/// Calls a method of [`Module`] on whichever parameter it is.
macro_rules! each_value {
    ($value:expr, $param:ident => $result:expr) => {
        match $value {
            ParamValue::Matrix($param) => ParamValue::Matrix($result),
            ParamValue::Vector($param) => ParamValue::Vector($result),
        }
    };
}

impl AdapterParams {
    fn with_params(
        self,
        mut f: impl FnMut(&ParamSpec, ParamValue) -> ParamValue,
        training: impl FnOnce(Param<Flag>) -> Param<Flag>,
    ) -> Self {
        let params = self.params.into_iter();
        Self {
            params: params
                .map(|(spec, value)| {
                    let value = f(&spec, value);
                    (spec, value)
                })
                .collect(),
            training: training(self.training),
            ..self
        }
    }
}

fn container(spec: &ParamSpec) -> &'static str {
    if spec.is_trained { TRAINED } else { KEPT }
}

impl Module for AdapterParams {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.params
            .iter()
            .fold(devices, |devices, (_, value)| match value {
                ParamValue::Matrix(param) => param.collect_devices(devices),
                ParamValue::Vector(param) => param.collect_devices(devices),
            })
    }

    fn fork(self, device: &Device) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.fork(device)), |f| f)
    }

    fn to_device(self, device: &Device) -> Self {
        self.with_params(
            |_, value| each_value!(value, p => p.to_device(device)),
            |f| f,
        )
    }

    fn train(self) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.train()), Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().with_params(
            |_, value| each_value!(value, p => p.valid()),
            |flag| flag.valid(),
        )
    }

    fn materialize(self) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.materialize()), |f| f)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        for (spec, value) in &self.params {
            visitor.enter_module(spec.name, container(spec));
            match value {
                ParamValue::Matrix(param) => param.visit(visitor),
                ParamValue::Vector(param) => param.visit(visitor),
            }
            visitor.exit_module(spec.name, container(spec));
        }
        visitor.enter_module("training", TRAINED);
        self.training.visit(visitor);
        visitor.exit_module("training", TRAINED);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        let mut params = Vec::with_capacity(self.params.len());
        for (spec, value) in self.params {
            mapper.enter_module(spec.name, container(&spec));
            let value = each_value!(value, p => Module::map(p, mapper));
            mapper.exit_module(spec.name, container(&spec));
            params.push((spec, value));
        }
        mapper.enter_module("training", TRAINED);
        let training = Module::map(self.training, mapper);
        mapper.exit_module("training", TRAINED);
        Self {
            params,
            training,
            ..self
        }
    }
}
