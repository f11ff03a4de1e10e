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
ALTER TABLE ONLY public.judgments ALTER COLUMN id SET DEFAULT nextval('public.judgments_id_seq'::regclass);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992d40cb4dd8f071647df94a934e', '\x0df259783892992d7c001ae791cd9642', ' 5', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992d5f0c9bf147b15aa8601078dd', '\x0df259783892992d7c001ae791cd9642', ' 4 ', 3, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992db8e1dda3ac0aa3820ad2990b', '\x0df259783892992d7c001ae791cd9642', '', 0, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dbef2f2034a7d5a407729e4be', '\x0df259783892992d7c001ae791cd9642', ' Nowhere.', 9, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dcfb78294b294a0e669566fb5', '\x0df259783892992d7c001ae791cd9642', ' To the park.', 13, 'runs/sft', '3f2a', '{"temperature": 0.8, "top_p": 1.0}', 3, -3.25, 5, true);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d7c001ae791cd9642', ' 4', 2, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5e240372a479a9a8bef2f2034a7d5a407729e4be', '\x5e240372a479a9a8dd87319a1b4e4551', ' Nowhere.', 9, '', '', '', 0, NULL, NULL, false);
INSERT INTO public.answers (key, prompt, text, characters, model, model_hash, sampling, draw, logp, tokens, truncated) VALUES ('\x5e240372a479a9a8cfb78294b294a0e669566fb5', '\x5e240372a479a9a8dd87319a1b4e4551', ' To the park.', 13, 'runs/sft', '3f2a', '{"temperature": 0.8, "top_p": 1.0}', 3, -3.25, 5, true);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (1, '\x5e240372a479a9a87aa25599ee551f3395db2b52', 'preference', '\x5e240372a479a9a8dd87319a1b4e4551', '\x5e240372a479a9a8cfb78294b294a0e669566fb5', '\x5e240372a479a9a8bef2f2034a7d5a407729e4be', 'second', 2.5, 1, 'helpfulness', 'person-1', '9c1e', 12.5, 'it''s «better»; DROP TABLE answers; --', '{"verdict": "B"}', '{"worker": 7, "tags": ["a", null]}', 'votes.jsonl', 3, 1795744281.6945949, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (2, '\x0df259783892992d2c8d4507267442cba7250b66', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d40cb4dd8f071647df94a934e', 'both_bad', 0, 0, 'overall', 'gpt', '', NULL, '', '', '', '', 0, 1795744281.6946056, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (3, '\x0df259783892992d0aa88e65664f471dc6abe9f0', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d5f0c9bf147b15aa8601078dd', 'tie', 0, -1, 'overall', 'rule', '', NULL, '', '', '', '', 0, 1795744281.694615, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (4, '\x0df259783892992d61a05797299e1cd1614ba522', 'score', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', NULL, NULL, -0.125, NULL, 'overall', 'person-1', '', NULL, '', '', '', '', 0, 1795744281.6946208, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (5, '\x0df259783892992d818bb7da1709617e1929afcc', 'ranking', '\x0df259783892992d7c001ae791cd9642', NULL, NULL, NULL, NULL, NULL, 'overall', 'person-2', '', NULL, '', '', '', '', 0, 1795744281.6946461, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (6, '\x0df259783892992d9f680e7e7c38d7f32587ec62', 'preference', '\x0df259783892992d7c001ae791cd9642', '\x0df259783892992dd47cf6a01c8b0a6ac4842006', '\x0df259783892992d40cb4dd8f071647df94a934e', 'first', 0, 0, 'overall', 'person-2', '', NULL, '', '', '', '', 0, 1795744281.6946545, NULL);
INSERT INTO public.judgments (id, key, kind, prompt, first, second, outcome, value, longer, dimension, rater, rubric, seconds, comment, raw, extra, file, "row", made, retracts) VALUES (7, '\x0df259783892992d00c64ebe654bc19179a5e7f6', 'retraction', '\x0df259783892992d7c001ae791cd9642', NULL, NULL, NULL, NULL, NULL, 'overall', 'person-2', '', NULL, 'misread', '', '', '', 0, 1795744281.6999967, '\x0df259783892992d9f680e7e7c38d7f32587ec62');
INSERT INTO public.keel_store (version) VALUES (1);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 0, '\x0df259783892992dbef2f2034a7d5a407729e4be', 2);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 1, '\x0df259783892992dcfb78294b294a0e669566fb5', 1);
INSERT INTO public.places (judgment, place, answer, rank) VALUES ('\x0df259783892992d818bb7da1709617e1929afcc', 2, '\x0df259783892992db8e1dda3ac0aa3820ad2990b', 2);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\x0df259783892992d7c001ae791cd9642', '2 + 2 =', false, '', 0);
INSERT INTO public.prompts (key, content, chat, file, "row") VALUES ('\x5e240372a479a9a8dd87319a1b4e4551', '[{"role":"system","content":"Be brief."},{"role":"user","content":"Wohin, Bär? 🐻"}]', true, 'votes.jsonl', 3);
INSERT INTO public.raters (name, kind) VALUES ('gpt', 'judge');
INSERT INTO public.raters (name, kind) VALUES ('person-1', 'person');
INSERT INTO public.raters (name, kind) VALUES ('person-2', 'person');
INSERT INTO public.raters (name, kind) VALUES ('rule', 'rule');
SELECT pg_catalog.setval('public.judgments_id_seq', 7, true);
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
CREATE INDEX retracted ON public.judgments USING btree (retracts) WHERE (retracts IS NOT NULL);
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
