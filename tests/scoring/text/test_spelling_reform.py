from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring.text.spelling_reform import SPELLINGS, unify_spelling

# Spellings before and after the agreement.
REFORMED = """
acção=ação acto=ato actual=atual actualizar=atualizar actriz=atriz activo=ativo direcção=direção director=diretor
directamente=diretamente objecto=objeto projecto=projeto sector=setor selecção=seleção seleccionar=selecionar
óptimo=ótimo optimista=otimista baptismo=batismo adopção=adoção adoptar=adotar Egipto=Egito excepto=exceto
excepcional=excecional recepção=receção concepção=conceção percepção=perceção aspecto=aspeto espectáculo=espetáculo
electricidade=eletricidade eléctrico=elétrico arquitecto=arquiteto insecto=inseto afecto=afeto efectivo=efetivo
respectivo=respetivo perspectiva=perspetiva carácter=caráter nocturno=noturno leccionar=lecionar fracção=fração
colectivo=coletivo correcção=correção inspecção=inspeção protecção=proteção reacção=reação redacção=redação
rectângulo=retângulo rectificar=retificar jacto=jato trajecto=trajeto lectivo=letivo vector=vetor infecção=infeção
lêem=leem crêem=creem vêem=veem dêem=deem jóia=joia bóia=boia heróico=heroico paranóico=paranoico pára=para pêlo=pelo
pólo=polo auto-estrada=autoestrada anti-social=antissocial mini-saia=minissaia co-autor=coautor microondas=micro-ondas
infra-estrutura=infraestrutura idéia=ideia assembléia=assembleia vôo=voo freqüente=frequente
céptico=cético abjecto=abjeto reflectir=refletir contraceptivo=contracetivo bairro-de-lata=bairro%de%lata
característica=caraterística espectro=espetro dia-a-dia=dia%a%dia cor-de-rosa=cor%de%rosa
""".split()  # noqa: SIM905

# Words that keep their spelling, and pairs that are other words.
KEPT = """
facto pacto apto compacto contacto intacto impacto bactéria caracteres ficção facção fricção convicção
corrupção erupção opção rapto técnica néctar octogonal papéis faróis herói constrói têm contêm vêm porquê avô pôr
contra-almirante guarda-chuva fa-lo-ei dir-se-ia sucção núpcias lácteo intelectual
""".split()  # noqa: SIM905


@pytest.mark.parametrize("pair", REFORMED)
def test_reformed_words_are_equal(pair):
    old, new = pair.replace("%", " ").split("=")
    assert unify_spelling(old) == unify_spelling(new)
    assert unify_spelling(f"A {old.upper()}.") == unify_spelling(f"A {new.upper()}.")


@pytest.mark.parametrize("word", [word for word in KEPT if not word.startswith("contra-")])
def test_what_the_agreement_does_not_change(word):
    assert unify_spelling(word) == word


@pytest.mark.parametrize(
    "pair", ["pato=pacto", "fato=facto", "corte=corrupte", "avo=avô", "contém=contêm", "dição=dicção"]
)
def test_other_words_stay_other_words(pair):
    one, other = pair.split("=")
    assert unify_spelling(one) != unify_spelling(other)


def test_forms_of_haver_and_locutions():
    assert unify_spelling("hão-de ver, há-de ser ao fim-de-semana") == "hão de ver, há de ser ao fim de semana"


@pytest.mark.parametrize(
    "pair", ["facto=fato", "contacto=contato", "económico=econômico", "António=Antônio", "ténis=tênis"]
)
def test_what_each_country_decides_is_made_equal_on_request(pair):
    portugal, brazil = pair.split("=")
    assert unify_spelling(portugal) != unify_spelling(brazil)
    assert unify_spelling(portugal, "ao90_variants") == unify_spelling(brazil, "ao90_variants")
    assert unify_spelling("têm contêm", "ao90_variants") == "têm contêm"


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(words=st.lists(st.sampled_from([side for pair in REFORMED for side in pair.split("=")] + KEPT), max_size=6))
def test_a_form_is_its_own_form(spelling, words):
    once = unify_spelling(" ".join(words), spelling)
    assert unify_spelling(once, spelling) == once
