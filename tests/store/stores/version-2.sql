CREATE TABLE public.accounts (
    name text NOT NULL,
    role text NOT NULL,
    token bytea NOT NULL,
    made double precision NOT NULL,
    revoked double precision
);
CREATE TABLE public.answers (
    key bytea NOT NULL,
    prompt bytea NOT NULL,
    text text NOT NULL,
    characters integer NOT NULL,
    model text NOT NULL,
    model_hash text NOT NULL,
    sampling text NOT NULL,
    draw integer NOT NULL,
    logp double precision,
    tokens integer,
    truncated boolean NOT NULL
);
CREATE TABLE public.judgments (
    id bigint NOT NULL,
    key bytea NOT NULL,
    kind text NOT NULL,
    prompt bytea NOT NULL,
    first bytea,
    second bytea,
    outcome text,
    value double precision,
    longer smallint,
    dimension text NOT NULL,
    rater text NOT NULL,
    rubric text NOT NULL,
    seconds double precision,
    comment text NOT NULL,
    raw text NOT NULL,
    extra text NOT NULL,
    file text NOT NULL,
    "row" integer NOT NULL,
    made double precision NOT NULL,
    retracts bytea
);
CREATE SEQUENCE public.judgments_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.judgments_id_seq OWNED BY public.judgments.id;
CREATE TABLE public.keel_store (
    version integer NOT NULL
);
CREATE TABLE public.places (
    judgment bytea NOT NULL,
    place smallint NOT NULL,
    answer bytea NOT NULL,
    rank smallint NOT NULL
);
CREATE TABLE public.prompts (
    key bytea NOT NULL,
    content text NOT NULL,
    chat boolean NOT NULL,
    file text NOT NULL,
    "row" integer NOT NULL
);
CREATE TABLE public.raters (
    name text NOT NULL,
    kind text NOT NULL
);
CREATE TABLE public.sessions (
    key bytea NOT NULL,
    name text NOT NULL,
    csrf text NOT NULL,
    expires double precision NOT NULL
);
CREATE TABLE public.settings (
    name text NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.shown (
    task bigint NOT NULL,
    place smallint NOT NULL,
    answer bytea NOT NULL
);
CREATE TABLE public.tasks (
    id bigint NOT NULL,
    key bytea NOT NULL,
    kind text NOT NULL,
    prompt bytea NOT NULL,
    dimension text NOT NULL,
    overlap integer NOT NULL,
    wants integer NOT NULL,
    begun boolean NOT NULL,
    gold text NOT NULL,
    adjudicated boolean NOT NULL
);
CREATE SEQUENCE public.tasks_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.tasks_id_seq OWNED BY public.tasks.id;
CREATE TABLE public.turns (
    task bigint NOT NULL,
    rater text NOT NULL,
    key text NOT NULL,
    state text NOT NULL,
    "order" text NOT NULL,
    made double precision NOT NULL,
    expires double precision NOT NULL,
    done double precision,
    said text NOT NULL,
    settled text NOT NULL,
    judgments text NOT NULL,
    "right" double precision,
    seconds double precision,
    note text NOT NULL
);
ALTER TABLE ONLY public.judgments ALTER COLUMN id SET DEFAULT nextval('public.judgments_id_seq'::regclass);
ALTER TABLE ONLY public.tasks ALTER COLUMN id SET DEFAULT nextval('public.tasks_id_seq'::regclass);
INSERT INTO public.accounts (name, role, token, made, revoked) VALUES ('ana', 'admin', '\x17d59d233e9df5fb93919481fec47e8c3e622ab51e21f40372fed1ff57ef7024', 1795744282.127753, NULL);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992d40cb4dd8f071647df94a934e', '\x0df259783892992d7c001ae791cd9642', ' 5', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992d5f0c9bf147b15aa8601078dd', '\x0df259783892992d7c001ae791cd9642', ' 4 ', 3, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992db8e1dda3ac0aa3820ad2990b', '\x0df259783892992d7c001ae791cd9642', '', 0, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dbef2f2034a7d5a407729e4be', '\x0df259783892992d7c001ae791cd9642', ' Nowhere.', 9, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dcfb78294b294a0e669566fb5', '\x0df259783892992d7c001ae791cd9642', ' To the park.', 13, 'runs/sft', '3f2a', '{"temperature": 0.8, "top_p": 1.0}', 3, -3.25, 5, true);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d7c001ae791cd9642', ' 4', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5e240372a479a9a8bef2f2034a7d5a407729e4be', '\x5e240372a479a9a8dd87319a1b4e4551', ' Nowhere.', 9, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5e240372a479a9a8cfb78294b294a0e669566fb5', '\x5e240372a479a9a8dd87319a1b4e4551', ' To the park.', 13, 'runs/sft', '3f2a', '{"temperature": 0.8, "top_p": 1.0}', 3, -3.25, 5, true);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5dd43a80ebaa2c951a23e61d24a7712d85d112fa', '\x5dd43a80ebaa2c952c350d9bc3b3c973', 'no', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5dd43a80ebaa2c95d8ab81b2f017be926c73e723', '\x5dd43a80ebaa2c952c350d9bc3b3c973', 'yes', 3, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\xa66add2b359fb49e1a23e61d24a7712d85d112fa', '\xa66add2b359fb49e9bd7d85c30525b2b', 'no', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\xa66add2b359fb49ed8ab81b2f017be926c73e723', '\xa66add2b359fb49e9bd7d85c30525b2b', 'yes', 3, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (1, '\x5e240372a479a9a87aa25599ee551f3395db2b52', 'preference', '\x5e240372a479a9a8dd87319a1b4e4551', '\x5e240372a479a9a8cfb78294b294a0e669566fb5', '\x5e240372a479a9a8bef2f2034a7d5a407729e4be', 'second', 2.5, 1, 'helpfulness', 'person-1', '9c1e', 12.5, 'it''s «better»; DROP TABLE answers; --', '{"verdict": "B"}', '{"worker": 7, "tags": ["a", null]}', 'votes.jsonl', 3, 1795744282.105747, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (2, '\x0df259783892992d2c8d4507267442cba7250b66', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d40cb4dd8f071647df94a934e', 'both_bad', 0, 0, 'overall', 'gpt', '', NULL, '', '', '', '', 0, 1795744282.1057584, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (3, '\x0df259783892992d0aa88e65664f471dc6abe9f0', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d5f0c9bf147b15aa8601078dd', 'tie', 0, -1, 'overall', 'rule', '', NULL, '', '', '', '', 0, 1795744282.1057675, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (4, '\x0df259783892992d61a05797299e1cd1614ba522', 'score', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', NULL, NULL, -0.125, NULL, 'overall', 'person-1', '', NULL, '', '', '', '', 0, 1795744282.1057732, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (5, '\x0df259783892992d818bb7da1709617e1929afcc', 'ranking', '\x0df259783892992d7c001ae791cd9642', NULL, NULL, NULL, NULL, NULL, 'overall', 'person-2', '', NULL, '', '', '', '', 0, 1795744282.105798, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (6, '\x0df259783892992d9f680e7e7c38d7f32587ec62', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d40cb4dd8f071647df94a934e', 'first', 0, 0, 'overall', 'person-2', '', NULL, '', '', '', '', 0, 1795744282.1058068, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (7, '\x0df259783892992d00c64ebe654bc19179a5e7f6', 'retraction', '\x0df259783892992d7c001ae791cd9642', NULL, NULL, NULL, NULL, NULL, 'overall', 'person-2', '', NULL, 'misread', '', '', '', 0, 1795744282.1105502, '\x0df259783892992d9f680e7e7c38d7f32587ec62');
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (8, '\x5dd43a80ebaa2c951987d7f94c920c96a9545dcc', 'preference', '\x5dd43a80ebaa2c952c350d9bc3b3c973', '\x5dd43a80ebaa2c95d8ab81b2f017be926c73e723', '\x5dd43a80ebaa2c951a23e61d24a7712d85d112fa', 'first', 2, 1, 'overall', 'ana', '9c1e', NULL, '', '', '', '', 0, 1795744282.1420655, NULL);
INSERT INTO public.keel_store (version) VALUES (2);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 0, '\x0df259783892992dbef2f2034a7d5a407729e4be', 2);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 1, '\x0df259783892992dcfb78294b294a0e669566fb5', 1);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 2, '\x0df259783892992db8e1dda3ac0aa3820ad2990b', 2);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\x0df259783892992d7c001ae791cd9642', '2 + 2 =', false, '', 0);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\x5e240372a479a9a8dd87319a1b4e4551', '[{"role":"system","content":"Be brief."},{"role":"user","content":"Wohin, Bär? 🐻"}]', true, 'votes.jsonl', 3);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\x5dd43a80ebaa2c952c350d9bc3b3c973', 'Rain?', false, '', 0);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\xa66add2b359fb49e9bd7d85c30525b2b', 'Sun?', false, '', 0);
INSERT INTO public.raters (name, kind) VALUES ('gpt', 'judge');
INSERT INTO public.raters (name, kind) VALUES ('person-1', 'person');
INSERT INTO public.raters (name, kind) VALUES ('person-2', 'person');
INSERT INTO public.raters (name, kind) VALUES ('rule', 'rule');
INSERT INTO public.raters (name, kind) VALUES ('ana', 'person');
INSERT INTO public.settings (name, value) VALUES ('side seed', '03adff4db1a2d91c');
INSERT INTO public.shown (task, place, answer) VALUES (1, 0, '\xa66add2b359fb49ed8ab81b2f017be926c73e723');
INSERT INTO public.shown (task, place, answer) VALUES (1, 1, '\xa66add2b359fb49e1a23e61d24a7712d85d112fa');
INSERT INTO public.shown (task, place, answer) VALUES (2, 0, '\x5dd43a80ebaa2c95d8ab81b2f017be926c73e723');
INSERT INTO public.shown (task, place, answer) VALUES (2, 1, '\x5dd43a80ebaa2c951a23e61d24a7712d85d112fa');
INSERT INTO public.tasks (id, key, kind, prompt, dimension, overlap, wants, begun, gold, adjudicated) VALUES (1, '\x9f94d6b50a3ef86cbf8d623e507f23d0ca52de21', 'pair', '\xa66add2b359fb49e9bd7d85c30525b2b', '', 2, 0, false, '{"overall": "first"}', false);
INSERT INTO public.tasks (id, key, kind, prompt, dimension, overlap, wants, begun, gold, adjudicated) VALUES (2, '\xb17702b06365f673e7ddac9caa08e623b82eb424', 'pair', '\x5dd43a80ebaa2c952c350d9bc3b3c973', '', 2, 1, true, '', false);
INSERT INTO public.turns (task, rater, key, state, "order", made, expires, done, said, settled, judgments, "right", seconds, note) VALUES (2, 'ana', 'bdc903da6b1d537d2f1144677a611493', 'judged', '0,1', 1795744282.1292524, 1795745182.1292524, 1795744282.1428654, '{"overall": {"outcome": "first", "strength": 2}}', '{"overall": "first"}', '5dd43a80ebaa2c951987d7f94c920c96a9545dcc', NULL, NULL, '');
SELECT pg_catalog.setval('public.judgments_id_seq', 8, true);
SELECT pg_catalog.setval('public.tasks_id_seq', 2, true);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_token_key UNIQUE (token);
ALTER TABLE ONLY public.answers
    ADD CONSTRAINT answers_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_key_key UNIQUE (key);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.places
    ADD CONSTRAINT places_pkey PRIMARY KEY (judgment, place);
ALTER TABLE ONLY public.prompts
    ADD CONSTRAINT prompts_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.raters
    ADD CONSTRAINT raters_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.settings
    ADD CONSTRAINT settings_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.shown
    ADD CONSTRAINT shown_pkey PRIMARY KEY (task, place);
ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_key_key UNIQUE (key);
ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_key_key UNIQUE (key);
ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_pkey PRIMARY KEY (task, rater);
CREATE INDEX gold_tasks ON public.tasks USING btree (id) WHERE (gold <> ''::text);
CREATE INDEX leases ON public.turns USING btree (expires) WHERE (state = 'leased'::text);
CREATE INDEX open_tasks ON public.tasks USING btree (begun, id) WHERE (wants > 0);
CREATE INDEX retracted ON public.judgments USING btree (retracts) WHERE (retracts IS NOT NULL);
CREATE INDEX turns_of ON public.turns USING btree (rater, state, done);
ALTER TABLE ONLY public.answers
    ADD CONSTRAINT answers_prompt_fkey FOREIGN KEY (prompt) REFERENCES public.prompts(key);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_first_fkey FOREIGN KEY (first) REFERENCES public.answers(key);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_prompt_fkey FOREIGN KEY (prompt) REFERENCES public.prompts(key);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_rater_fkey FOREIGN KEY (rater) REFERENCES public.raters(name);
ALTER TABLE ONLY public.judgments
    ADD CONSTRAINT judgments_second_fkey FOREIGN KEY (second) REFERENCES public.answers(key);
ALTER TABLE ONLY public.places
    ADD CONSTRAINT places_answer_fkey FOREIGN KEY (answer) REFERENCES public.answers(key);
ALTER TABLE ONLY public.places
    ADD CONSTRAINT places_judgment_fkey FOREIGN KEY (judgment) REFERENCES public.judgments(key);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_name_fkey FOREIGN KEY (name) REFERENCES public.accounts(name);
ALTER TABLE ONLY public.shown
    ADD CONSTRAINT shown_answer_fkey FOREIGN KEY (answer) REFERENCES public.answers(key);
ALTER TABLE ONLY public.shown
    ADD CONSTRAINT shown_task_fkey FOREIGN KEY (task) REFERENCES public.tasks(id);
ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT tasks_prompt_fkey FOREIGN KEY (prompt) REFERENCES public.prompts(key);
ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_task_fkey FOREIGN KEY (task) REFERENCES public.tasks(id);
