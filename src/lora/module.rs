//! Burn's traits for a layer that can hold an adapter: as `#[derive(Module)]` gives them, but that a traversal of
//! [`edit_layers`](super::layers::edit_layers) and [`collect_layers`](super::layers::collect_layers) meets the layer
//! itself.

/// Implements [`Module`](burn::module::Module) and `Display` for a layer. `params` are parameters with a level of
/// their own in paths; `inline` are modules without one, so that a weight is `q_proj.weight` with and without
/// adapters; `skip` is everything else.
macro_rules! adapted_module {
    ($layer:ident, params($($param:ident),*), inline($($inline:ident),*), skip($($skip:ident),*)) => {
        impl burn::module::Module for $layer {
            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                $(let devices = burn::module::Module::collect_devices(&self.$param, devices);)*
                $(let devices = burn::module::Module::collect_devices(&self.$inline, devices);)*
                devices
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                Self {
                    $($param: burn::module::Module::fork(self.$param, device),)*
                    $($inline: burn::module::Module::fork(self.$inline, device),)*
                    $($skip: self.$skip,)*
                }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                Self {
                    $($param: burn::module::Module::to_device(self.$param, device),)*
                    $($inline: burn::module::Module::to_device(self.$inline, device),)*
                    $($skip: self.$skip,)*
                }
            }

            fn train(self) -> Self {
                Self {
                    $($param: burn::module::Module::train(self.$param),)*
                    $($inline: burn::module::Module::train(self.$inline),)*
                    $($skip: self.$skip,)*
                }
            }

            fn valid(&self) -> Self {
                Self {
                    $($param: burn::module::Module::valid(&self.$param),)*
                    $($inline: burn::module::Module::valid(&self.$inline),)*
                    $($skip: self.$skip.clone(),)*
                }
            }

            fn materialize(self) -> Self {
                Self {
                    $($param: burn::module::Module::materialize(self.$param),)*
                    $($inline: burn::module::Module::materialize(self.$inline),)*
                    $($skip: self.$skip,)*
                }
            }

            fn visit<Visitor: burn::module::ModuleVisitor>(&self, visitor: &mut Visitor) {
                if $crate::lora::inspected(self) {
                    return;
                }
                $(
                    visitor.enter_module(stringify!($param), concat!("Struct:", stringify!($layer)));
                    burn::module::Module::visit(&self.$param, visitor);
                    visitor.exit_module(stringify!($param), concat!("Struct:", stringify!($layer)));
                )*
                $(burn::module::Module::visit(&self.$inline, visitor);)*
            }

            fn map<Mapper: burn::module::ModuleMapper>(mut self, mapper: &mut Mapper) -> Self {
                if $crate::lora::edited(&mut self) {
                    return self;
                }
                $(
                    mapper.enter_module(stringify!($param), concat!("Struct:", stringify!($layer)));
                    let $param = burn::module::Module::map(self.$param, mapper);
                    mapper.exit_module(stringify!($param), concat!("Struct:", stringify!($layer)));
                )*
                $(let $inline = burn::module::Module::map(self.$inline, mapper);)*
                Self {
                    $($param,)*
                    $($inline,)*
                    $($skip: self.$skip,)*
                }
            }
        }

        impl burn::module::ModuleDisplayDefault for $layer {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                burn::module::ModuleDisplay::custom_content(self, content)
            }
        }

        impl std::fmt::Display for $layer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let settings = burn::module::DisplaySettings::default();
                f.write_str(&burn::module::ModuleDisplay::format(self, settings))
            }
        }
    };
}
pub(crate) use adapted_module;
