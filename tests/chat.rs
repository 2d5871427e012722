//! Conversations: chat templates, what of them is learned, and the formats in which they come.
//! `tests/python/check_chat.py` compares the same with transformers.

#[path = "tiny_tokenizer/sentencepiece.rs"]
mod sentencepiece;
mod tiny_tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use burn_peft::data::*;
use burn_peft::tokenizer::{ChatEncoder, ChatTemplate, Tokenizer};
use burn_peft::{Error, Result};
use serde_json::json;

fn tiny() -> Tokenizer {
    Tokenizer::from_json_bytes(tiny_tokenizer::json().as_bytes()).unwrap()
}

/// The same with a token for ChatML's end of a turn.
fn knows_chatml() -> Tokenizer {
    let mut json: serde_json::Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
    let end = json!({
        "id": 271, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false,
    });
    json["added_tokens"].as_array_mut().unwrap().push(end);
    Tokenizer::from_json_bytes(json.to_string().as_bytes()).unwrap()
}

fn template(text: &str) -> ChatTemplate {
    ChatTemplate::new(text, "t.jinja").unwrap()
}

fn said(turns: &[(&str, &str)]) -> Conversation {
    Conversation::new(
        turns
            .iter()
            .map(|(role, content)| Message::new(role, content)),
    )
}

#[track_caller]
fn rendered(text: &str, conversation: &Conversation) -> String {
    template(text).render(conversation, false).unwrap().text
}

mod templates {
    use super::*;

    #[track_caller]
    fn refused(text: &str, conversation: &Conversation, expected: &str) {
        let template = ChatTemplate::new(text, "t.jinja");
        let error = template
            .and_then(|template| template.render(conversation, false))
            .unwrap_err();
        assert!(matches!(error, Error::Format { .. }));
        assert_eq!(error.to_string(), expected);
    }

    /// A template comes with a model that somebody else made.
    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let all = said(&[("user", "a"), ("assistant", "b")]);
        for text in [
            "{{ 'a' | indent(2000000) }}",
            "{{ 'a' | indent(width=2000000) }}",
            "{{ messages | batch(2000000) | list }}",
            "{{ messages | slice(2000000) | list }}",
            "{{ (messages * 1000000) | list }}",
            "{{ (messages * 1000000) | join }}",
            "{{ messages * 1000000 }}",
            "{{ (messages * 1000000) | map(attribute='role') | list }}",
            "{{ (messages * 1000000) | tojson }}",
            "{{ '%999999d' | format(1) }}",
            "{{ '%*d' | format(9, 1) }}",
            "{{ '{:>999999}'.format(1) }}",
        ] {
            let error = template(text).render(&all, false).unwrap_err().to_string();
            let said = ["more than", "widths of at most"];
            assert!(
                said.iter().any(|said| error.contains(said)),
                "{text}: {error}"
            );
        }
        let text = "{{ 'a\nb' | indent(2) }} {{ (messages * 2) | map(attribute='content') | join(', ') }} \
                    {{ '%5d in 20260101' | format(7) }} {{ '{:*>4}'.format(1) }} {{ [[1, 2] | batch(2) | list, [3] * 2] }}";
        let expected = "a\n  b a, b, a, b     7 in 20260101 ***1 [[[1, 2]], [3, 3]]";
        assert_eq!(rendered(text, &all), expected);
    }

    #[test]
    fn blocks_are_trimmed_and_loops_controlled() {
        let text = "a\n  {% for m in messages %}\n{% if loop.index0 == 1 %}{% continue %}{% endif %}\n\
                    {% if loop.index0 == 3 %}{% break %}{% endif %}\n {{ m.role }}\n  {% endfor %}\nb\n";
        let all = said(&[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")]);
        assert_eq!(rendered(text, &all), "a\n a\n c\nb");
        let windows = text.replace('\n', "\r\n");
        assert_eq!(rendered(&windows, &all), "a\n a\n c\nb");
    }

    #[test]
    fn values_are_written_as_in_python() {
        let tools = vec![json!({"n": null, "b": [true, 1.0, 1e-7], "s": "<é'\">"})];
        let conversation = Conversation::ask("").with_tools(tools);
        for (text, expected) in [
            (
                "{{ tools[0] }}",
                r#"{'n': None, 'b': [True, 1.0, 1e-07], 's': '<é\'">'}"#,
            ),
            ("{{ 'x' ~ tools[0].b }}", "x[True, 1.0, 1e-07]"),
            ("{{ tools[0].b | string + 'x' }}", "[True, 1.0, 1e-07]x"),
            (
                "{{ tools[0] | tojson }}",
                r#"{"n": null, "b": [true, 1.0, 1e-07], "s": "<é'\">"}"#,
            ),
            (
                "{{ tools | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
                r#"[{"b":[true,1.0,1e-07],"n":null,"s":"<\u00e9'\">"}]"#,
            ),
            (
                "{{ {'a': [1, {}]} | tojson(indent=2) }}",
                "{\n  \"a\": [\n    1,\n    {}\n  ]\n}",
            ),
            ("{{ nothing }}{{ none }}{{ documents }}", "NoneNone"),
            ("{{ true }}{{ 3 / 2 }}{{ 7 // 2 }}", "True1.53"),
        ] {
            assert_eq!(rendered(text, &conversation), expected, "{text}");
        }
    }

    #[test]
    fn texts_and_dictionaries_have_the_methods_of_python() {
        let conversation =
            Conversation::ask(" a-b-c ").with_tools(vec![json!({"items": 1, "b": 2})]);
        for (method, expected) in [
            ("c.strip().split('-')[-1]", "c"),
            ("c.strip().rsplit('-', 1)", "['a-b', 'c']"),
            ("c.rsplit('-')[0]", " a"),
            ("c.rsplit()", "['a-b-c']"),
            ("c.partition('-')[2]", "b-c "),
            ("c.partition('x')", "[' a-b-c ', '', '']"),
            ("c.rpartition('-')[0]", " a-b"),
            ("c.rpartition('x')[2]", " a-b-c "),
            ("c.removeprefix(' a').removesuffix('c ')", "-b-"),
            ("c.index('b')", "3"),
            ("['x', 'y'].index('y')", "1"),
            ("c.lstrip().startswith('a')", "True"),
            ("tools[0].items() | list | length", "2"),
            ("tools[0].get('none', 'd')", "d"),
            (
                "c is sequence and tools is sequence and tools[0] is sequence",
                "True",
            ),
            (
                "c is iterable and tools is iterable and 1 is not iterable",
                "True",
            ),
        ] {
            let text = format!("{{% set c = messages[0].content %}}{{{{ {method} }}}}");
            assert_eq!(rendered(&text, &conversation), expected, "{method}");
        }
    }

    #[test]
    fn a_template_sees_messages_as_transformers_gives_them() {
        let message =
            json!({"role": "assistant", "content": null, "thinking": "t", "name": null, "x": [1]});
        let conversation =
            Conversation::new([Message::from_json(message).unwrap()]).with_variable("v", "w");
        let text = "{{ messages[0] | tojson }}{{ tools is none }}{{ documents is none }}{{ v }}{{ \
                    add_generation_prompt }}";
        let message =
            r#"{"role": "assistant", "thinking": "t", "x": [1], "reasoning_content": "t"}"#;
        let expected = format!("{message}TrueTruewFalse");
        assert_eq!(rendered(text, &conversation), expected);
    }

    #[test]
    fn chatml_is_there_without_a_template() {
        let turns = [("system", "s"), ("user", " u\n"), ("assistant", "a")];
        let parts = json!([{"type": "text", "text": "p"}, {"type": "image"}, {"text": "q"}]);
        let parts = json!({"role": "user", "content": parts});
        let mut conversation = said(&turns);
        conversation
            .messages
            .push(Message::from_json(parts).unwrap());
        let expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n \
                        u\n<|im_end|>\n<|im_start|>assistant\na\
                        <|im_end|>\n<|im_start|>user\npq<|im_end|>\n";
        let found = ChatTemplate::chatml().render(&conversation, false).unwrap();
        assert_eq!(found.text, expected);
        let answer: Vec<&str> = found
            .generated
            .iter()
            .map(|range| &found.text[range.clone()])
            .collect();
        assert_eq!(answer, ["a<|im_end|>"]);
        // After what the tokenizer begins every text with.
        let tokenizer = tiny();
        let chosen = ChatTemplate::choose(None, &tokenizer).unwrap();
        assert!(chosen.is_chatml() && chosen.marks_answers());
        let found = chosen.render(&conversation, true).unwrap().text;
        // And with its end of a text, where a model can stop, as it knows none of ChatML's.
        let expected = expected.replace("<|im_end|>", "</s>");
        assert_eq!(found, format!("<s>{expected}<|im_start|>assistant\n"));
        assert_eq!(chosen.end_of_turn(&tokenizer), tokenizer.eos_id());
        let known = ChatTemplate::chatml().for_tokenizer(&knows_chatml());
        let found = known.render(&said(&turns), false).unwrap().text;
        assert!(found.ends_with("a<|im_end|>\n"), "{found}");
        assert_eq!(known.end_of_turn(&knows_chatml()), Some(271));
    }

    #[test]
    fn a_template_knows_the_tokenizers_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("tokenizer.json"), tiny_tokenizer::json()).unwrap();
        let plain = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ add_bos_token }}";
        let config = json!({
            "bos_token": "</s>", "eos_token": {"content": "</s>"}, "pad_token": "<unk>",
            "add_bos_token": true,
            "chat_template": [
                {"name": "default", "template": plain},
                {"name": "tool_use", "template": "tools of {{ eos_token }}"},
            ],
        });
        fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(
            path("special_tokens_map.json"),
            r#"{"bos_token": "<s>", "unk_token": "<unk>"}"#,
        )
        .unwrap();
        let own = || ChatTemplate::choose(None, &Tokenizer::from_dir(&dir).unwrap()).unwrap();
        let (plain, tools) = (
            Conversation::ask(""),
            Conversation::ask("").with_tools(vec![json!({})]),
        );
        assert_eq!(own().render(&plain, false).unwrap().text, "</s></s><unk>");
        assert_eq!(own().render(&tools, false).unwrap().text, "tools of </s>");
        // A file of its own is for both.
        fs::write(path("chat_template.jinja"), "{{ unk_token }}!").unwrap();
        assert_eq!(own().render(&plain, false).unwrap().text, "<unk>!");
        assert_eq!(own().render(&tools, false).unwrap().text, "<unk>!");
        assert_eq!(own().origin(), path("chat_template.jinja"));
        fs::create_dir(path("additional_chat_templates")).unwrap();
        fs::write(path("additional_chat_templates/tool_use.jinja"), "more").unwrap();
        assert_eq!(own().render(&tools, false).unwrap().text, "more");
        // Another is chosen by its path, or by its name.
        let other = path("other.jinja");
        fs::write(&other, "other {{ pad_token }}").unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let chosen = ChatTemplate::choose(other.to_str(), &tokenizer).unwrap();
        assert_eq!(chosen.render(&plain, false).unwrap().text, "other <unk>");
        assert!(
            ChatTemplate::choose(Some("chatml"), &tokenizer)
                .unwrap()
                .is_chatml()
        );
        assert!(matches!(
            ChatTemplate::choose(Some("none.jinja"), &tokenizer),
            Err(Error::Io { .. })
        ));
        chosen.save(dir.path()).unwrap();
        assert_eq!(
            fs::read_to_string(path("chat_template.jinja")).unwrap(),
            "other {{ pad_token }}"
        );
        fs::write(path("tokenizer_config.json"), r#"{"chat_template": 3}"#).unwrap();
        let error = Tokenizer::from_dir(&dir).unwrap_err().to_string();
        assert!(
            error.ends_with("`chat_template` is neither a text nor a list of named texts"),
            "{error}"
        );
    }

    #[test]
    fn the_template_of_a_gguf_file() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/llama.gguf");
        let tokenizer = Tokenizer::from_gguf(&path).unwrap();
        let own = ChatTemplate::of(&tokenizer).unwrap().unwrap();
        assert_eq!(own.origin(), path);
        assert_eq!(
            own.render(&said(&[("user", "a"), ("assistant", "b")]), false)
                .unwrap()
                .text,
            "ab"
        );
        let text = "{{ eos_token }}";
        let end = template(text)
            .for_tokenizer(&tokenizer)
            .render(&Conversation::ask(""), false)
            .unwrap()
            .text;
        let id = tokenizer.eos_id().unwrap();
        let rendered = template(text)
            .for_tokenizer(&tokenizer)
            .render(&Conversation::ask(""), false)
            .unwrap();
        let ids = ChatEncoder::new(&tokenizer).encode(&rendered).unwrap();
        assert_eq!(
            ids.iter().map(|token| token.id).collect::<Vec<_>>(),
            [id],
            "{end}"
        );
    }

    #[test]
    fn errors_name_file_and_line() {
        let ask = Conversation::ask("hi");
        for (text, expected) in [
            (
                "a\n{% if %}",
                "t.jinja: line 2 of the chat template: unexpected end of block",
            ),
            (
                "\n\n{{ raise_exception('no ' + messages[0].role) }}",
                "t.jinja: line 3 of the chat template: the template refuses it: no user",
            ),
            (
                "{{ messages[0].none.name }}",
                "t.jinja: line 1 of the chat template: a value is used that is not defined",
            ),
            (
                "{{ messages[0].content.shout() }}",
                "t.jinja: line 1 of the chat template: string has no method named shout",
            ),
            (
                "{{ 3 | tojson(separators=',') }}",
                "t.jinja: line 1 of the chat template: `separators` of tojson are two texts",
            ),
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}\n{% endfor %}",
                "t.jinja: line 1 of the chat template: it takes too long; is there a loop without an end?",
            ),
        ] {
            refused(text, &ask, expected);
        }
    }

    #[test]
    fn messages_that_are_none() {
        for (message, expected) in [
            (
                json!("hi"),
                "a message is not an object with `role` and `content`",
            ),
            (json!({"content": "hi"}), "a message has no `role`"),
            (json!({"role": 3}), "`role` is not a text"),
            (
                json!({"role": "a|><|b"}),
                "`role` is \"a|><|b\"; write a word",
            ),
            (
                json!({"role": "user", "content": 3}),
                "`content` is neither a text nor a list of parts",
            ),
            (
                json!({"role": "user", "content": [3]}),
                "`content` is neither a text nor a list of parts",
            ),
        ] {
            assert_eq!(Message::from_json(message).unwrap_err(), expected);
        }
    }
}

mod answers {
    use super::*;

    const CHAT: [(&str, &str); 5] = [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a </s>"),
        ("user", "v"),
        ("assistant", "b"),
    ];

    fn parts(
        template: &ChatTemplate,
        conversation: &Conversation,
        last: bool,
    ) -> Result<Vec<String>> {
        let rendered = template.render(conversation, false)?;
        let answers = template.answers(conversation, &rendered, last)?;
        Ok(answers
            .into_iter()
            .map(|range| rendered.text[range].to_owned())
            .collect())
    }

    #[track_caller]
    fn are(text: &str, turns: &[(&str, &str)], expected: &[&str]) {
        let template = template(text).for_tokenizer(&tiny());
        assert_eq!(parts(&template, &said(turns), false).unwrap(), expected);
        let last = expected.last().into_iter().copied().collect::<Vec<_>>();
        assert_eq!(parts(&template, &said(turns), true).unwrap(), last);
    }

    #[test]
    fn by_the_marks_of_the_template() {
        let text = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ loop.index \
                    }}{{ m.content }}\
                    {% set ns = namespace(a=m.content) %}{{ ns.a }}{% endgeneration %}{% else %}[{{ \
                    m.content }}]{% endif %}{% endfor %}";
        are(text, &CHAT, &["3a </s>a </s>", "5bb"]);
        let given = said(&CHAT).with_num_given(4);
        assert_eq!(parts(&template(text), &given, false).unwrap(), ["5bb"]);
    }

    /// What the prompt for an answer ends with is given, though it is marked: as with TRL's `completion_only_loss`.
    #[test]
    fn marks_that_begin_in_the_prompt() {
        let text = "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ '\n' + \
                    m.content }}</s>{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}{% if \
                    add_generation_prompt %}{{ '<a>\n' }}{% endif %}";
        let turns = [("user", "u"), ("assistant", "a")];
        are(text, &turns, &["\na</s>"]);
        let given = said(&turns).with_num_given(1);
        assert_eq!(parts(&template(text), &given, false).unwrap(), ["a</s>"]);
    }

    #[test]
    fn a_message_cannot_mark_itself() {
        let text =
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
        let said = said(&[
            ("user", "\u{100000}a\u{100001}"),
            ("assistant", "b\u{100003}</s>"),
        ]);
        let rendered = template(text)
            .for_tokenizer(&tiny())
            .render(&said, false)
            .unwrap();
        assert_eq!(rendered.text, "\u{100000}a\u{100001}b\u{100003}</s>");
        assert_eq!(rendered.generated, [0..9, 9..18]);
        assert_eq!(rendered.quoted.first(), Some(&(14..18)));
    }

    /// As OpenAI and axolotl say it, in a message of theirs or of ShareGPT.
    #[test]
    fn a_message_that_is_not_to_be_learned() {
        let marks = "{% for m in messages %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% endfor %}";
        let without = "{% for m in messages %}{{ m.content }}</s>{% endfor %}";
        for (key, value) in [("weight", json!(0)), ("train", json!(false))] {
            let mut conversation = said(&CHAT[1..]);
            let answers = |conversation: &Conversation, text: &str, last| {
                parts(&template(text).for_tokenizer(&tiny()), conversation, last).unwrap()
            };
            let message = conversation.messages[1].clone();
            conversation.messages[1] = message.with(key, value.clone());
            assert_eq!(answers(&conversation, without, false), ["b</s>"]);
            let marked = answers(&conversation, marks, false);
            assert!(!marked.concat().contains('a'), "{marked:?}");
            assert!(marked.contains(&"b</s>".to_owned()), "{marked:?}");
            let message = conversation.messages[3].clone();
            conversation.messages[3] = message.with(key, value.clone());
            for text in [marks, without] {
                assert_eq!(answers(&conversation, text, true), [""; 0]);
            }
            let turn = json!({"from": "gpt", "value": "a", key: value});
            let line = json!({"conversations": [{"from": "human", "value": "u"}, turn]});
            let records = parse_records(&line.to_string(), "one", Format::Auto).unwrap();
            let Record::Chat(conversation) = &records.as_slice()[0] else {
                panic!("{records:?}");
            };
            assert!(conversation.learned().next().is_none());
        }
    }

    /// Where the model stops that speaks by it.
    #[test]
    fn the_end_of_a_turn() {
        let tokenizer = tiny();
        let end = |text: &str| {
            let template = template(text).for_tokenizer(&tokenizer);
            template.end_of_turn(&tokenizer)
        };
        let eos = tokenizer.eos_id();
        assert!(eos.is_some());
        let all = |text: &str| format!("{{% for m in messages %}}{text}{{% endfor %}}");
        assert_eq!(end(&all("[{{ m.content }}]</s>\n")), eos);
        assert_eq!(
            end(&all(
                "{% generation %}{{ m.content }}</s>{% endgeneration %}"
            )),
            eos
        );
        for text in [
            all("[{{ m.content }}]"),
            all("</s>{{ m.content }}"),
            "{{ raise_exception('no') }}".to_owned(),
        ] {
            assert_eq!(end(&text), None, "{text}");
        }
    }

    /// What stands before all others is no answer.
    #[test]
    fn by_renderings_of_the_beginnings() {
        let text = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
        are(text, &CHAT, &["a </s></s>", "b</s>"]);
        are(
            text,
            &[("assistant", "x"), ("user", "u"), ("assistant", "a")],
            &["a</s>"],
        );
        are(text, &[("assistant", "x")], &[]);
        are(text, &[("user", "u")], &[]);
        let given = said(&CHAT).with_num_given(3);
        assert_eq!(
            parts(&template(text).for_tokenizer(&tiny()), &given, false).unwrap(),
            ["b</s>"]
        );
    }

    /// Without a prompt of its own, as Llama 2's.
    #[test]
    fn where_an_answer_follows_at_once() {
        let text = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% elif m.role == \
                    'assistant' %} {{ m.content }} \
                    </s>{% endif %}{% endfor %}";
        are(text, &CHAT, &[" a </s> </s>", " b </s>"]);
    }

    /// As Qwen 3, whose earlier answers lose their thoughts.
    #[test]
    fn where_thoughts_are_left_out_later() {
        let text = "{% for m in messages %}<{{ m.role }}>{% if loop.last %}{{ m.content }}{% else %}{{ \
                    m.content.split('|')[-1] }}\
                    {% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let turns = [
            ("user", "u"),
            ("assistant", "t|a"),
            ("user", "v"),
            ("assistant", "t|b"),
        ];
        are(text, &turns, &["a</s>", "t|b</s>"]);
    }

    /// As Phi-3.
    #[test]
    fn where_every_conversation_ends_with_a_token() {
        let text = "{% for m in messages %}{{ '<unk>' if m.role == 'user' else '' }}{{ m.content }}\
                    </s>\n{% endfor %}\
                    {% if not add_generation_prompt %}<s>{% endif %}";
        let turns = [
            ("user", "u"),
            ("assistant", "a"),
            ("user", "v"),
            ("assistant", "b"),
        ];
        are(text, &turns, &["a</s>", "b</s>\n<s>"]);
    }

    /// As gpt-oss.
    #[test]
    fn where_the_last_answer_ends_with_a_token_of_its_own() {
        let text = "{% for m in messages %}{{ '[' ~ m.role ~ ']' ~ m.content }}\
                    {{ '<unk>' if loop.last and m.role == 'assistant' else '</s>' }}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
        let turns = [
            ("user", "u"),
            ("assistant", "a"),
            ("user", "v"),
            ("assistant", "b"),
        ];
        are(text, &turns, &["a</s>", "b<unk>"]);
    }

    /// As DeepSeek R1, whose prompt begins a thought.
    #[test]
    fn where_the_prompt_has_more_than_answers_of_before() {
        let text = "{% for m in messages %}{{ '{U}' if m.role == 'user' else '{A}' }}{{ m.content }}{% \
                    endfor %}\
                    {% if add_generation_prompt %}{A}<think>{% endif %}";
        let turns = [
            ("user", "u"),
            ("assistant", "a"),
            ("user", "v"),
            ("assistant", "b"),
        ];
        are(text, &turns, &["a", "b"]);
    }

    #[test]
    fn a_message_that_is_left_out_has_nothing() {
        let text = "{% for m in messages %}{% if m.content != 'x' %}[{{ m.role }}]{{ m.content }}\
                    </s>\n{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
        let turns = [("user", "u"), ("assistant", "x"), ("assistant", "b")];
        let template = template(text).for_tokenizer(&tiny());
        assert_eq!(
            parts(&template, &said(&turns), false).unwrap(),
            ["", "b</s>"]
        );
    }

    #[test]
    fn a_template_that_does_not_tell() {
        let text = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let error = parts(&template(text), &said(&CHAT), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "t.jinja: message 3 is written in another way when the conversation goes on"
            ),
            "{error}"
        );
        let text = "{% for m in messages %}{{ m.content if loop.last else m.content | upper }}{% endfor %}";
        let turns = [
            ("user", "1"),
            ("assistant", "a"),
            ("user", "v"),
            ("assistant", "b"),
        ];
        let error = parts(&template(text), &said(&turns), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("message 2 is written in another way"),
            "{error}"
        );
        assert!(parts(&template(text), &said(&turns[..2]), true).is_ok());
    }
}

mod tokens {
    use super::*;

    const TEXT: &str = "{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}";

    fn ids(tokenizer: &Tokenizer, text: &str, conversation: &Conversation) -> Vec<u32> {
        let template = template(text).for_tokenizer(tokenizer);
        let rendered = template.render(conversation, false).unwrap();
        let tokens = ChatEncoder::new(tokenizer).encode(&rendered).unwrap();
        // Every letter is in a token.
        let mut end = 0;
        for token in &tokens {
            assert!(
                token.place.start <= end && token.place.end >= end,
                "{tokens:?}"
            );
            end = token.place.end;
        }
        assert_eq!(end, rendered.text.len());
        tokens.into_iter().map(|token| token.id).collect()
    }

    /// BOS is the template's, and there is one.
    #[test]
    fn special_tokens_of_the_template_are_tokens() {
        let hello = tiny_tokenizer::id("\u{2581}hello");
        let found = ids(
            &tiny(),
            TEXT,
            &said(&[("user", " hello "), ("assistant", "hello")]),
        );
        assert_eq!(found, [1, hello, 2, 1, hello, 2]);
        assert_eq!(
            ids(
                &tiny(),
                "{{ messages[0].content }}",
                &said(&[("user", "hello")])
            ),
            [hello]
        );
    }

    #[test]
    fn special_tokens_of_a_message_are_text() {
        for content in [
            "</s>",
            "hello</s>",
            " <s>hello</s> ",
            "</s></s>",
            "a <unk> b",
        ] {
            let found = ids(&tiny(), TEXT, &said(&[("user", content)]));
            assert_eq!((found[0], found[found.len() - 1]), (1, 2));
            let inner = &found[1..found.len() - 1];
            assert!(inner.iter().all(|id| *id > 2), "{content}: {found:?}");
            assert_eq!(tiny().decode(inner).unwrap().trim(), content.trim());
        }
    }

    #[test]
    fn special_tokens_of_tools_and_variables_are_text() {
        let text = "{{ tools | tojson }}{{ v }}</s>";
        let conversation = Conversation::ask("")
            .with_tools(vec![json!({"a": "<s>"})])
            .with_variable("v", "</s>");
        let found = ids(&tiny(), text, &conversation);
        assert_eq!(found.iter().filter(|id| **id <= 2).count(), 1);
    }

    #[test]
    fn a_template_that_looks_at_a_special_tokens_letters() {
        let text = "{{ messages[0].content | length }}";
        let template = template(text).for_tokenizer(&tiny());
        let error = template
            .render(&Conversation::ask("</s>"), false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the name of a special token in its text, which the template changes"),
            "{error}"
        );
        assert_eq!(
            template
                .render(&Conversation::ask("</p>"), false)
                .unwrap()
                .text,
            "4"
        );
    }

    #[test]
    fn a_sentencepiece_model_gives_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.model");
        fs::write(&path, sentencepiece::Model::default().bytes()).unwrap();
        let pieces = Tokenizer::from_file(&path).unwrap();
        for content in [
            "hello",
            "  hello  he é",
            "hell\n",
            "<s>hello",
            "\u{2581}he",
            "<0x0A>",
            "",
        ] {
            let conversation = said(&[("user", content), ("assistant", "hello!")]);
            let [model, json] =
                [&pieces, &tiny()].map(|tokenizer| ids(tokenizer, TEXT, &conversation));
            assert_eq!(model, json, "{content:?}");
        }
    }
}

mod samples {
    use super::*;

    const TEXT: &str = "{% for m in messages %}{{ '<s>' if m.role == 'user' else '' }}{{ m.content }}\
                        </s>{% endfor %}";

    fn encoder(tokenizer: &Tokenizer) -> RecordEncoder<'_> {
        RecordEncoder::new(tokenizer).with_template(Some(template(TEXT).for_tokenizer(tokenizer)))
    }

    fn records(lines: &[serde_json::Value]) -> Records {
        let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        parse_records(&lines.join("\n"), "data.jsonl", Format::Auto).unwrap()
    }

    fn chat(turns: &[(&str, &str)]) -> serde_json::Value {
        let messages = turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}));
        json!({ "messages": messages.collect::<Vec<_>>() })
    }

    #[track_caller]
    fn labelled(sample: &Sample, expected: &[u32]) {
        let labels = sample.labels.iter().filter(|label| **label != IGNORE_INDEX);
        assert_eq!(
            labels.map(|label| *label as u32).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn labels_are_on_answers() {
        let tokenizer = tiny();
        let hello = tiny_tokenizer::id("\u{2581}hello");
        let he = tiny_tokenizer::id("\u{2581}he");
        let turns = [
            ("user", "he"),
            ("assistant", "hello"),
            ("user", "he"),
            ("assistant", "hello"),
        ];
        let records = records(&[chat(&turns)]);
        let tokens = [1, he, 2, hello, 2, 1, he, 2, hello, 2];
        for (train_on, expected) in [
            (TrainOn::Assistant, vec![hello, 2, hello, 2]),
            (TrainOn::Last, vec![hello, 2]),
            (TrainOn::All, tokens.to_vec()),
        ] {
            let encoder = encoder(&tokenizer).with_train_on(train_on);
            let sample = encoder.encode(&records.as_slice()[0]).unwrap();
            assert_eq!(sample.tokens, tokens);
            labelled(&sample, &expected);
        }
    }

    #[test]
    fn what_is_too_long() {
        let tokenizer = tiny();
        let hello = tiny_tokenizer::id("\u{2581}hello");
        let records = records(&[
            chat(&[("user", "hello"), ("assistant", "hello")]),
            chat(&[("user", "hello"), ("assistant", "hello hello hello")]),
            chat(&[
                ("user", "hello hello hello hello hello"),
                ("assistant", "hello"),
            ]),
            chat(&[("user", "hello"), ("assistant", " ")]),
            chat(&[("user", "hello")]),
        ]);
        let encoder = encoder(&tokenizer).with_max_seq_len(Some(5));
        let (samples, counts) = encoder.encode_all(&records).unwrap();
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[1].tokens, [1, hello, 2, hello, hello]);
        assert_eq!(samples[1].labels[3..], [hello as i32, hello as i32]);
        let told = (
            counts.read,
            counts.used,
            counts.cut,
            counts.empty_answers,
            counts.too_long,
            counts.prompt_only,
            counts.without_labels,
        );
        assert_eq!(told, (5, 3, 1, 1, 2, 1, 1));

        let (samples, counts) = encoder
            .with_too_long(TooLong::Drop)
            .encode_all(&records)
            .unwrap();
        assert!(samples.iter().all(|sample| !sample.is_cut));
        assert_eq!(
            (
                samples.len(),
                counts.used,
                counts.cut,
                counts.too_long,
                counts.without_labels
            ),
            (2, 2, 0, 2, 1)
        );

        let encoder = self::encoder(&tokenizer)
            .with_max_seq_len(Some(5))
            .with_too_long(TooLong::Error);
        assert_eq!(
            encoder.encode_all(&records).unwrap_err().to_string(),
            "data.jsonl: record 2 (line 2): it is longer than 5 tokens; give a larger max_seq_len, or \
             have such records \
             cut or left out (too_long)"
        );
        let zero = self::encoder(&tokenizer).with_max_seq_len(Some(0));
        assert!(matches!(
            zero.encode_all(&records),
            Err(Error::InvalidArgument {
                name: "max_seq_len",
                ..
            })
        ));
    }

    /// Under `train_on_input` a prompt that fills all the room has labels, but teaches nothing of an answer.
    #[test]
    fn prompts_without_room_for_an_answer() {
        let tokenizer = tiny();
        let long = "hello ".repeat(200);
        let alpaca = records(&[
            json!({"instruction": long, "output": "he"}),
            json!({"instruction": "he", "output": "he"}),
        ]);
        let chats = records(&[
            chat(&[("user", &long), ("assistant", "he")]),
            chat(&[("user", "he"), ("assistant", "he")]),
            // Has no answer to be lost.
            chat(&[("user", &long)]),
        ]);
        let encoder = |max| {
            self::encoder(&tokenizer)
                .with_train_on_input(true)
                .with_train_on(TrainOn::All)
                .with_max_seq_len(Some(max))
        };
        let (samples, counts) = encoder(220).encode_all(&alpaca).unwrap();
        assert_eq!((samples.len(), counts.used, counts.prompt_only), (1, 1, 1));
        assert_eq!(
            (counts.too_long, counts.cut, counts.without_labels),
            (1, 0, 0)
        );
        let (samples, counts) = encoder(100).encode_all(&chats).unwrap();
        assert_eq!((samples.len(), counts.prompt_only), (2, 1));
        assert_eq!((counts.too_long, counts.cut), (2, 1));
        // Without room for one of its tokens, where the one without an answer fits; with room for one.
        let (_, counts) = encoder(203).encode_all(&chats).unwrap();
        assert_eq!((counts.prompt_only, counts.cut), (1, 0));
        let (_, counts) = encoder(204).encode_all(&chats).unwrap();
        assert_eq!((counts.prompt_only, counts.cut), (0, 1));

        let kept = encoder(220).with_prompt_only(Treatment::Keep);
        let (samples, counts) = kept.encode_all(&alpaca).unwrap();
        assert_eq!((samples.len(), counts.prompt_only, counts.cut), (2, 1, 1));
        let refused = encoder(220).with_prompt_only(Treatment::Error);
        assert_eq!(
            refused.encode_all(&alpaca).unwrap_err().to_string(),
            "data.jsonl: record 1 (line 1): its prompt fills 220 tokens, so that nothing of its answer is left; \
             give a larger max_seq_len, or have such records left out (prompt_only)"
        );
    }

    #[test]
    fn what_says_nothing() {
        let tokenizer = tiny();
        let alpaca = records(&[
            json!({"instruction": "he", "output": " "}),
            json!({"instruction": " \n", "input": "he", "output": "he"}),
            json!({"instruction": "", "output": ""}),
            json!({"instruction": "he", "output": "he"}),
        ]);
        let chats = records(&[
            chat(&[
                ("user", "he"),
                ("assistant", ""),
                ("user", "he"),
                ("assistant", "he"),
            ]),
            chat(&[
                ("user", "he"),
                ("assistant", "he"),
                ("user", " "),
                ("assistant", "he"),
            ]),
            chat(&[("user", ""), ("assistant", "")]),
            chat(&[("assistant", "he")]),
        ]);
        // A picture is something to ask about.
        let picture = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
        assert!(!records(&[picture]).as_slice()[0].has_empty_instruction());
        for records in [&alpaca, &chats] {
            let encoder = || encoder(&tokenizer).with_train_on(TrainOn::All);
            let (samples, counts) = encoder().encode_all(records).unwrap();
            assert_eq!((counts.empty_answers, counts.empty_instructions), (2, 2));
            assert_eq!((samples.len(), counts.used, counts.read), (2, 2, 4));

            let keeping = encoder().with_empty_instructions(Treatment::Keep);
            assert_eq!(keeping.encode_all(records).unwrap().0.len(), 4);
            let dropping = encoder().with_empty_answers(Treatment::Drop);
            let (samples, counts) = dropping.encode_all(records).unwrap();
            assert_eq!((samples.len(), counts.empty_answers), (1, 2));

            let refusing = encoder().with_empty_answers(Treatment::Error);
            let error = refusing.encode_all(records).unwrap_err().to_string();
            assert_eq!(
                error,
                "data.jsonl: record 1 (line 1): its answer is empty; write one, or have such records kept or left \
                 out (empty_answers)"
            );
            let refusing = encoder().with_empty_instructions(Treatment::Error);
            let error = refusing.encode_all(records).unwrap_err().to_string();
            assert!(
                error.starts_with("data.jsonl: record 2 (line 2): its instruction is empty"),
                "{error}"
            );
        }
        let unlabelled = records(&[
            chat(&[("user", "he")]),
            chat(&[("user", "he"), ("assistant", "he")]),
        ]);
        let (samples, counts) = encoder(&tokenizer).encode_all(&unlabelled).unwrap();
        assert_eq!((samples.len(), counts.without_labels), (1, 1));
        let keeping = encoder(&tokenizer).with_without_labels(Treatment::Keep);
        assert_eq!(keeping.encode_all(&unlabelled).unwrap().0.len(), 2);
        let refusing = encoder(&tokenizer).with_without_labels(Treatment::Error);
        let error = refusing.encode_all(&unlabelled).unwrap_err().to_string();
        assert!(
            error.contains("record 1 (line 1): the loss counts nothing of it"),
            "{error}"
        );
    }

    /// Of a conversation that is cut only the beginning is encoded and looked at.
    #[test]
    fn long_conversations_are_cut_where_the_whole_would_be() {
        let tokenizer = tiny();
        let turns = [("user", "hello he <s> he"), ("assistant", "hello hello")].repeat(300);
        let records = records(&[chat(&turns)]);
        let record = &records.as_slice()[0];
        for train_on in [TrainOn::Assistant, TrainOn::All] {
            let whole = encoder(&tokenizer)
                .with_train_on(train_on)
                .encode(record)
                .unwrap();
            assert!(whole.len() > 2000);
            for max in [1, 2, 17, 500, 1500] {
                let encoder = encoder(&tokenizer).with_train_on(train_on);
                let cut = encoder.with_max_seq_len(Some(max)).encode(record).unwrap();
                assert_eq!(cut.tokens, whole.tokens[..max]);
                assert_eq!(cut.labels, whole.labels[..max]);
                assert!(cut.is_cut);
            }
        }
    }

    #[test]
    fn other_records_are_as_they_were() {
        let tokenizer = tiny();
        let alpaca = records(&[json!({"instruction": "hello", "output": "he"})]);
        let Record::Alpaca(record) = &alpaca.as_slice()[0] else {
            panic!()
        };
        for train_on_input in [true, false] {
            let encoder = RecordEncoder::new(&tokenizer)
                .with_train_on_input(train_on_input)
                .with_max_seq_len(Some(300));
            let expected =
                Sample::from_record(record, &tokenizer, train_on_input, Some(300)).unwrap();
            assert_eq!(encoder.encode_all(&alpaca).unwrap().0, [expected]);
        }
        let completion = records(&[json!({"prompt": "hello", "completion": "he"})]);
        let expected = Sample::from_prompt("hello", "he", &tokenizer, false, None).unwrap();
        assert_eq!(
            encoder(&tokenizer).encode_all(&completion).unwrap().0,
            [expected]
        );
        let text = records(&[json!({"text": "hello"})]);
        let expected = Sample::from_prompt("", "hello", &tokenizer, true, None).unwrap();
        assert_eq!(encoder(&tokenizer).encode_all(&text).unwrap().0, [expected]);
        // As conversations, by the template.
        let (samples, _) = encoder(&tokenizer)
            .encode_all(&alpaca.into_conversations())
            .unwrap();
        assert_eq!(
            samples[0].tokens[..3],
            [1, tiny_tokenizer::id("\u{2581}hello"), 2]
        );
    }

    #[test]
    fn errors_name_the_record() {
        let tokenizer = tiny();
        let records = records(&[
            chat(&[("user", "a"), ("assistant", "b")]),
            chat(&[("tool", "a"), ("assistant", "b")]),
        ]);
        assert!(records.has_conversations());
        let without = RecordEncoder::new(&tokenizer).encode_all(&records);
        assert!(matches!(
            without,
            Err(Error::InvalidArgument {
                name: "template",
                ..
            })
        ));
        let text = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}\
                    {% endif %}{% endfor %}";
        let encoder = RecordEncoder::new(&tokenizer).with_template(Some(template(text)));
        assert_eq!(
            encoder.encode_all(&records).unwrap_err().to_string(),
            "data.jsonl: record 2 (line 2): t.jinja: line 1 of the chat template: the template refuses \
             it: no tools"
        );
    }
}

mod formats {
    use super::*;

    #[track_caller]
    fn read(text: &str) -> Vec<Record> {
        parse_records(text, "data.json", Format::Auto)
            .unwrap()
            .as_slice()
            .to_vec()
    }

    #[track_caller]
    fn one_chat(record: serde_json::Value) -> Conversation {
        match read(&record.to_string()).pop() {
            Some(Record::Chat(conversation)) => conversation,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = parse_records(text, "data.json", Format::Auto).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn messages_of_openai() {
        let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
        let call = json!({"id": "1", "type": "function", "function": function});
        let other = json!({"name": "g", "arguments": {"b": 2}});
        let found = one_chat(json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
                {"role": "assistant", "content": null, "tool_calls": [call, other]},
                {"role": "tool", "content": "3", "tool_call_id": "1"},
            ],
            "tools": "[{\"name\": \"f\"}]",
            "chat_template_kwargs": {"enable_thinking": false},
        }));
        assert_eq!(found.tools, [json!({"name": "f"})]);
        assert_eq!(found.variables["enable_thinking"], json!(false));
        assert_eq!(found.messages[0].text(), "u");
        // Arguments that are written as a text are read.
        let calls = &found.messages[1].fields()["tool_calls"];
        assert_eq!(calls[0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(calls[1]["arguments"], json!({"b": 2}));
        assert!(!found.messages[1].fields().contains_key("content"));
        assert_eq!(found.messages[2].fields()["tool_call_id"], json!("1"));
    }

    #[test]
    fn conversations_of_sharegpt() {
        let found = one_chat(json!({
            "system": "s",
            "conversations": [
                {"from": "human", "value": "u"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
                {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"},
                {"from": "function_call", "value": "no JSON"}, {"role": "user", "content": "v"},
            ],
            "tools": [],
        }));
        let roles: Vec<&str> = found.messages.iter().map(Message::role).collect();
        assert_eq!(
            roles,
            [
                "system",
                "user",
                "assistant",
                "tool",
                "assistant",
                "assistant",
                "user"
            ]
        );
        assert_eq!(
            found.messages[2].fields()["tool_calls"][0]["function"]["name"],
            json!("f")
        );
        assert_eq!(found.messages[5].text(), "no JSON");
        let system = json!([{"from": "system", "value": "t"}, {"from": "human", "value": "u"}]);
        let found = one_chat(json!({"system": "s", "conversations": system}));
        assert_eq!(found, said(&[("system", "t"), ("user", "u")]));
    }

    #[test]
    fn prompts_with_completions() {
        let found = read(r#"{"prompt": "p", "completion": "c"}"#);
        assert_eq!(
            found,
            [Record::Completion {
                prompt: "p".into(),
                completion: "c".into()
            }]
        );
        let found = one_chat(json!({
            "prompt": [
                {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                {"role": "user", "content": "v"},
            ],
            "completion": [{"role": "assistant", "content": "b"}],
        }));
        let turns = [
            ("user", "u"),
            ("assistant", "a"),
            ("user", "v"),
            ("assistant", "b"),
        ];
        assert_eq!(found, said(&turns).with_num_given(3));
    }

    #[test]
    fn texts_and_instructions() {
        assert_eq!(read(r#"[{"text": "t"}]"#), [Record::Text("t".into())]);
        let found = read(r#"{"instruction": "i", "output": "o", "system": "", "history": []}"#);
        assert!(matches!(&found[..], [Record::Alpaca(record)] if record.instruction == "i"));
        // With any more than that, all are conversations.
        let found = read(concat!(
            r#"[{"instruction": "i", "input": "n", "output": "o"},"#,
            r#" {"instruction": "j", "output": "p", "system": "s", "history": [["u", "a"]]}]"#,
        ));
        let expected = [
            said(&[("user", "i\nn"), ("assistant", "o")]),
            said(&[
                ("system", "s"),
                ("user", "u"),
                ("assistant", "a"),
                ("user", "j"),
                ("assistant", "p"),
            ]),
        ];
        assert_eq!(found, expected.map(Record::Chat));
    }

    #[test]
    fn a_format_that_is_named() {
        let text = r#"{"text": "t", "instruction": "i", "output": "o"}"#;
        assert!(matches!(read(text)[..], [Record::Alpaca(_)]));
        let found = parse_records(text, "x", Format::Text).unwrap();
        assert_eq!(found.as_slice(), [Record::Text("t".into())]);
        let error = parse_records(text, "x", Format::Messages)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "x: record 1 (line 1): `messages` is missing");
    }

    #[test]
    fn what_cannot_be_read_is_located() {
        refused(
            r#"{"mesages": "x", "b": 1}"#,
            "data.json: the first record has the keys mesages, b; records are known by `messages` \
             (role, content), \
             `conversations` (from, value), `prompt` and `completion`, `instruction` and `output`, or \
             `text`; did you mean \
             `messages`?",
        );
        let unknown = parse_records(r#"{"turns": []}"#, "x", Format::Auto).unwrap_err();
        assert!(
            unknown
                .to_string()
                .contains("the first record has the keys turns"),
            "{unknown}"
        );
        refused("[3]", "data.json: the first record is not an object");
        refused(
            " ",
            "data.json: the data set is empty; it must hold at least one record",
        );
        refused(
            "a,b",
            "data.json: neither a JSON array of records nor JSON lines with a record a line",
        );
        refused(
            r#"{"data": [{"text": "a"}]}"#,
            "data.json: neither a JSON array of records nor JSON lines with a record a line",
        );
        let good = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
        for (bad, expected) in [
            ("3", "not an object"),
            ("{}", "`messages` is missing"),
            (r#"{"messages": 3}"#, "`messages` is not a list"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (
                r#"{"messages": [{"role": "user"}, {"role": 3}]}"#,
                "`messages`, message 2: `role` is not a text",
            ),
            (
                r#"{"messages": [{"from": "me", "value": "x"}]}"#,
                "`messages`, message 1: `from` is \"me\"; known are human, user, gpt, assistant, \
                 chatgpt, bing, bard, model, \
                 system, tool, function, observation, function_response, tool_response, function_call",
            ),
            (
                r#"{"messages": [{"from": "gpt"}]}"#,
                "`messages`, message 1: `value` is missing",
            ),
            (
                r#"{"messages": [{"role": "user"}], "tools": 3}"#,
                "`tools` is not a list",
            ),
            (
                r#"{"messages": [{"role": "user"}], "chat_template_kwargs": 3}"#,
                "`chat_template_kwargs` is not an object",
            ),
        ] {
            refused(
                &format!("{good}\n\n{bad}"),
                &format!("data.json: record 2 (line 3): {expected}"),
            );
            refused(
                &format!("[{good}, {bad}]"),
                &format!("data.json: record 2: {expected}"),
            );
        }
        for (bad, expected) in [
            (
                r#"{"prompt": 3, "completion": "c"}"#,
                "`prompt` is not a text",
            ),
            (
                r#"{"prompt": [{"role": "user"}], "completion": "c"}"#,
                "`completion` is not a list",
            ),
            (r#"{"text": null}"#, "`text` is missing"),
            (
                r#"{"instruction": "i", "output": "o", "system": 3, "history": [["a", "b"]]}"#,
                "`system` is not a text",
            ),
            (
                r#"{"instruction": "i", "output": "o", "history": [["a"]]}"#,
                "`history` is not a list of questions with their answers, two texts each",
            ),
        ] {
            refused(bad, &format!("data.json: record 1 (line 1): {expected}"));
        }
    }
}

mod files {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        for (name, text) in files {
            fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
            fs::write(path.join(name), text).unwrap();
        }
        (dir, path)
    }

    #[track_caller]
    fn texts(path: &Path, split: Split) -> Vec<String> {
        let records = load_split(path, split, Format::Auto).unwrap();
        let text = |record: &Record| match record {
            Record::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        records.as_slice().iter().map(text).collect()
    }

    #[test]
    fn a_table_with_a_header() {
        let text = "\u{feff}instruction,input, output\n\"a, \"\"b\"\"\",,c\nd,\"e\nf\",\n";
        let (_dir, path) = folder(&[
            ("a.csv", text),
            ("b.TSV", "text\tn\nx\t1\n"),
            ("c.csv", "text\n"),
            ("d.csv", "text,n\nx\n"),
        ]);
        let records = load_records(path.join("a.csv"), Format::Auto).unwrap();
        let found: Vec<_> = records
            .as_slice()
            .iter()
            .map(|record| match record {
                Record::Alpaca(record) => {
                    [&record.instruction, &record.input, &record.output].map(String::as_str)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, [["a, \"b\"", "", "c"], ["d", "e\nf", ""]]);
        assert_eq!(texts(&path.join("b.TSV"), Split::Train), ["x"]);
        let error = |name: &str| {
            load_records(path.join(name), Format::Auto)
                .unwrap_err()
                .to_string()
        };
        assert!(
            error("c.csv")
                .ends_with("c.csv: the data set is empty; it must hold at least one record")
        );
        assert!(
            error("d.csv").contains("malformed CSV: CSV error: record 1 (line: 2"),
            "{}",
            error("d.csv")
        );
        // Messages in a cell; the line of a record is that of the file.
        let cell = r#""[{""role"": ""user"", ""content"": ""u""}]""#;
        let (_dir, path) = folder(&[("a.csv", &format!("messages,n\n{cell},\"1\n2\"\n3,4\n"))]);
        let error = load_records(path.join("a.csv"), Format::Auto)
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("record 2 (line 4): `messages` is not a list"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_of_the_hub() {
        let line = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
        let (_dir, path) = folder(&[
            ("README.md", "# data"),
            ("train_sft.jsonl", &line("c")),
            ("data/train-00001-of-00002.jsonl", &line("b")),
            ("data/train-00000-of-00002.json", "[{\"text\": \"a\"}]"),
            ("data/training_notes.json", "x"),
            ("data/test-00000-of-00001.jsonl", &line("t")),
            ("validation.csv", "text\nv\n"),
        ]);
        assert_eq!(texts(&path, Split::Train), ["a", "b", "c"]);
        assert_eq!(texts(&path, Split::Validation), ["v"]);
        fs::remove_file(path.join("validation.csv")).unwrap();
        assert_eq!(texts(&path, Split::Validation), ["t"]);
        let two = format!(
            "{}, {}",
            path.join("train_sft.jsonl").display(),
            path.display()
        );
        assert_eq!(texts(Path::new(&two), Split::Train), ["c", "a", "b", "c"]);
    }

    #[test]
    fn files_that_are_none() {
        let (_dir, path) = folder(&[
            ("data/train-00000-of-00001.parquet", "PAR1"),
            ("x/notes.txt", ""),
        ]);
        let error = |path: &Path| load_records(path, Format::Auto).unwrap_err().to_string();
        let parquet = error(&path);
        match cfg!(feature = "parquet") {
            true => assert!(parquet.contains("malformed Parquet"), "{parquet}"),
            false => {
                assert!(parquet.contains("--features parquet"), "{parquet}");
                assert!(parquet.contains("to_json(\"train.jsonl\")"), "{parquet}");
            }
        }
        assert!(
            parquet.contains("train-00000-of-00001.parquet: "),
            "{parquet}"
        );
        let none = error(&path.join("x"));
        assert!(
            none.ends_with(
                "x: the folder has no train*.jsonl, .json, .csv or .parquet, nor has its folder \
                 `data`, and no folder train of such files; name a file of records"
            ),
            "{none}"
        );
        assert!(matches!(
            load_records(path.join("none.json"), Format::Auto),
            Err(Error::Io { .. })
        ));
    }
}
