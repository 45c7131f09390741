"""The portrait renderer: reading the data folder, the rasteriser's geometry, and what pictures must show."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="the rasteriser needs numba: pip install s2f-edge[train]")
pytest.importorskip("scipy", reason="the head model needs scipy: pip install s2f-edge[train]")

from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus import makehuman, raster
from training.corpus.attributes import FaceAttributes, ViewAttributes
from training.corpus.head import LANDMARKS, Head, subdivide
from training.corpus.render import Renderer
from training.corpus.scene import look_from, pose_points, rotation

FOLDER = Path(os.environ.get("S2F_MAKEHUMAN") or "unset")
needs_folder = pytest.mark.skipif(
    not os.environ.get("S2F_MAKEHUMAN"),
    reason="set S2F_MAKEHUMAN to the folder that holds MakeHuman's `data` folder (CC0) to render real heads",
)
MAN = FaceAttributes(sex=1.0, age=30, african=0.0, asian=0.0, caucasian=1.0, hair="short01", eyes="blue")
WOMAN = FaceAttributes(sex=0.0, age=30, african=0.0, asian=0.0, caucasian=1.0, hair="bob02", eyes="green")
VIEW = ViewAttributes()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(FOLDER, size=128)


def luminance(picture: np.ndarray, rows: slice, columns: slice) -> float:
    return float(picture[rows, columns].mean())


def test_folder_without_base_mesh_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusInvalid, match=r"base\.obj"):
        Head(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [("0 1 2\n", "damaged"), ("0 a b c\n", "damaged"), ("9 0 0 1\n", "vertex 9"), ("-1 0 0 1\n", "vertex")],
)
def test_damaged_target_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "x.target"
    path.write_text(text)
    with pytest.raises(CorpusInvalid, match=what):
        makehuman.read_target(path, 9)


def test_target_reads_comments_and_bare_decimals(tmp_path: Path) -> None:
    path = tmp_path / "x.target"
    path.write_text("# basemesh hm08\n3 -.5 0 .25\n")
    target = makehuman.read_target(path, 9)
    assert target.index.tolist() == [3]
    assert target.delta.tolist() == [[-0.5, 0.0, 0.25]]


def test_obj_whose_faces_name_missing_vertices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 4/1\n")
    with pytest.raises(CorpusInvalid, match=r"x\.obj"):
        makehuman.read_obj(path)


@pytest.mark.parametrize("age", [1, 7, 15, 25, 60, 90])
def test_macro_shares_sum_to_one(age: float) -> None:
    values = makehuman.macro_values(0.3, age, (1, 2, 3), 0.8, 0.1)
    for words in ("baby child young old", "male female", "african asian caucasian", "maxmuscle averagemuscle minmuscle",
                  "maxweight averageweight minweight"):  # fmt: skip
        assert sum(values[w] for w in words.split()) == pytest.approx(1.0, abs=1e-3)
    assert makehuman.macro_weights("universal-male-maxmuscle", values) == pytest.approx(0.3 * 0.6)


def test_proxy_offsets_scale_with_the_deformed_mesh() -> None:
    fit = makehuman.Fit(
        np.array([[0, 1, 2]]),
        np.array([[0.5, 0.5, 0.0]]),
        np.array([[0.0, 1.0, 0.0]]),
        ((0, 1, 1.0), (0, 2, 2.0), (0, 1, 0.0)),
    )
    verts = np.array([[0.0, 0, 0], [2, 0, 0], [0, 4, 0]])
    assert makehuman.fit_proxy(fit, verts).tolist() == [[1.0, 2.0, 0.0]]


def test_subdivision_keeps_a_plane_flat_and_its_border_in_place() -> None:
    faces = np.array([[0, 1, 4, 3], [1, 2, 5, 4], [3, 4, 7, 6], [4, 5, 8, 7]])
    grid = np.array([[x, y, 0.5 * x - y] for y in range(3) for x in range(3)], float)
    matrix, quads, uvs = subdivide(faces, np.zeros((4, 4, 2)), 9)
    points = matrix @ grid
    assert quads.shape == (16, 4)
    assert uvs.shape == (16, 4, 2)
    np.testing.assert_allclose(points[:, 2], 0.5 * points[:, 0] - points[:, 1], atol=1e-12)
    np.testing.assert_allclose(points[0], grid[0])
    assert len(np.unique(points.round(6), axis=0)) == 25


def test_rasteriser_keeps_the_nearest_front_face() -> None:
    points = np.array([[0, 0, 5], [0, 8, 5], [8, 0, 5], [0, 0, 3], [0, 8, 3], [8, 0, 3]], np.float32)
    tris = np.array([[0, 1, 2], [3, 4, 5], [3, 5, 4]], np.int32)
    zbuf, ids = np.full((8, 8), raster.FAR, np.float32), np.full((8, 8), -1, np.int32)
    raster.raster_visible(points, tris, zbuf, ids, np.zeros((8, 8, 2), np.float32))
    assert ids[1, 1] in (1, 2)
    assert zbuf[1, 1] == pytest.approx(3.0)
    assert ids[7, 7] == -1
    assert (ids >= 0).sum() == pytest.approx(32, abs=5)


def test_cut_removes_thin_strands_first() -> None:
    points = np.array([[0, 0, 5], [0, 16, 5], [16, 0, 5]], np.float32)
    tris, order = np.array([[0, 1, 2]], np.int32), np.array([0])
    uvs = np.array([[[0, 0], [0, 1], [1, 0]]], np.float32)
    one = np.ones((3, 3), np.float32)

    def covered(alpha: float, cut: float) -> float:
        texture = np.full((2, 2, 4), alpha, np.float32)
        image, zbuf = np.zeros((8, 8, 3), np.float32), np.full((8, 8), raster.FAR, np.float32)
        cuts = np.full(3, cut, np.float32)
        raster.blend_layer(points, tris, order, uvs, texture, one, one * 0, cuts, 1.0, zbuf, image, raster.BOTH, 0.0)
        return float(image[1, 1, 0])

    assert covered(0.3, 0.0) > 0
    assert covered(0.3, 0.4) == 0
    assert covered(0.7, 0.4) > 0


def test_rotation_directions() -> None:
    assert (rotation(20, 0, 0) @ [0, 0, 1])[0] > 0  # nose to the picture's right
    assert (rotation(0, 20, 0) @ [0, 0, 1])[1] > 0  # nose up
    assert (rotation(0, 0, 20) @ [0, 1, 0])[0] > 0  # crown to the picture's right


@needs_folder
@pytest.mark.slow
def test_same_attributes_same_bytes(renderer: Renderer) -> None:
    face = replace(WOMAN, seed=11, sliders={"nose/nose-scale-horiz": 0.5})
    first = renderer.render(face, VIEW)
    renderer.render(MAN, replace(VIEW, yaw=12))
    assert first.dtype == np.uint8
    assert first.shape == (128, 128, 3)
    np.testing.assert_array_equal(first, renderer.render(face, VIEW))
    np.testing.assert_array_equal(first, Renderer(FOLDER, size=128).render(face, VIEW))
    assert (first != renderer.render(replace(face, seed=12), VIEW)).any()


@needs_folder
@pytest.mark.parametrize("face", [MAN, WOMAN, replace(MAN, age=70, sliders={"head/head-scale-vert": 0.5})])
@pytest.mark.parametrize("view", [VIEW, ViewAttributes(yaw=15, pitch=-8, roll=5)])
def test_crop_is_aligned_and_the_face_fills_the_picture(
    renderer: Renderer, face: FaceAttributes, view: ViewAttributes
) -> None:
    verts = renderer.head.blend(face, {})
    camera = look_from(renderer.head, verts, view, 100)
    eyes = camera.project(pose_points(renderer.head.eye_centres(verts), camera)).mean(0)
    assert eyes[0] == pytest.approx(50, abs=0.5)
    assert eyes[1] == pytest.approx(48.5, abs=0.5)
    rows = [
        camera.project(pose_points(renderer.head.landmark(n, verts)[None], camera))[0, 1]
        for n in ("chin_bottom", "head_top")
    ]
    assert 57 < rows[0] - rows[1] < 78  # the last face is a long one


@needs_folder
def test_skin_follows_ancestry_and_tone(renderer: Renderer) -> None:
    cheeks = slice(70, 85), slice(50, 78)
    pale = luminance(renderer.render(MAN, VIEW), *cheeks)
    african = replace(MAN, african=1.0, caucasian=0.0)
    dark = luminance(renderer.render(african, VIEW), *cheeks)
    darker = luminance(renderer.render(replace(african, skin_tone=1.0), VIEW), *cheeks)
    assert pale > dark + 30 > darker + 30


@needs_folder
def test_stubble_darkens_a_mans_chin_only(renderer: Renderer) -> None:
    chin, forehead = (slice(88, 100), slice(56, 72)), (slice(36, 46), slice(56, 72))
    for face, drop in ((MAN, 12), (replace(WOMAN, hair="long01"), -1)):
        shaved = renderer.render(face, VIEW)
        rough = renderer.render(replace(face, stubble=1.0, hair_colour=(0.05, 0.04, 0.04)), VIEW)
        plain = renderer.render(replace(face, hair_colour=(0.05, 0.04, 0.04)), VIEW)
        assert luminance(plain, *chin) - luminance(rough, *chin) > drop
        assert abs(luminance(plain, *forehead) - luminance(rough, *forehead)) < 2
        assert shaved.shape == rough.shape


@needs_folder
def test_hair_greys_with_age(renderer: Renderer) -> None:
    crown = slice(14, 24), slice(56, 72)
    face = replace(MAN, hair="short02", hair_colour=(0.1, 0.07, 0.05))
    assert (
        luminance(renderer.render(replace(face, age=80), VIEW), *crown)
        > luminance(renderer.render(face, VIEW), *crown) + 40
    )


@needs_folder
def test_every_style_draws_and_hides_neither_eye(renderer: Renderer) -> None:
    names = renderer.catalogue()
    bald = {sex: renderer.render(replace(MAN, sex=sex, hair=""), VIEW).astype(int) for sex in (0.0, 1.0)}
    for sex, styles in ((0.0, names.hair_female), (1.0, names.hair_male)):
        for style in styles:
            picture = renderer.render(replace(MAN, sex=sex, hair=style), VIEW).astype(int)
            change = abs(picture - bald[sex]).mean(-1)
            assert (change[10:50] > 10).mean() > 0.02 or style == "", style
            for column in (53, 74):  # the pupils
                assert change[60:65, column - 2 : column + 3].mean() < 25, style


@needs_folder
def test_expression_and_sliders_move_the_face(renderer: Renderer) -> None:
    plain = renderer.render(MAN, VIEW).astype(int)
    smile = renderer.render(MAN, replace(VIEW, expression={"mouth-corner-puller": 1.0})).astype(int)
    assert abs(smile - plain)[80:95, 48:80].mean() > 3 * abs(smile - plain)[30:50, 48:80].mean()
    sided = renderer.head.blend(replace(MAN, sliders={"eyes/l-eye-scale": 1.0}), {})
    both = renderer.head.blend(replace(MAN, sliders={"eyes/eye-scale": 1.0}), {})
    rest = renderer.head.blend(MAN, {})
    left, right = (renderer.head.slot[LANDMARKS[n]] for n in ("l_eye_outer", "r_eye_outer"))
    assert abs(sided - rest)[left].max() > 0.005
    assert abs(sided - rest)[right].max() == 0
    assert abs(both - rest)[right].max() > 0.005


@needs_folder
@pytest.mark.parametrize(
    "change",
    [{"hair": "mohawk"}, {"eyes": "violet"}, {"brow": "none"}, {"lashes": "x"}, {"sliders": {"nose/nose-length": 1.0}}],
)
def test_unknown_names_are_refused(renderer: Renderer, change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        renderer.render(replace(MAN, **change), VIEW)


@needs_folder
def test_unknown_expression_is_refused(renderer: Renderer) -> None:
    with pytest.raises(InvalidArgument, match="wink"):
        renderer.render(MAN, replace(VIEW, expression={"wink": 1.0}))


@needs_folder
def test_catalogue_draws_sliders_by_their_logical_names(renderer: Renderer) -> None:
    sliders = renderer.catalogue().sliders
    assert len(sliders) > 100
    assert sliders["head/head-oval"] == 0.0
    assert sliders["nose/nose-scale-horiz"] == -1.0
    assert {"nose/nose-trans-up", "nose/nose-trans-forward", "nose/nose-trans-out"} <= set(sliders)
    assert not [n for n in sliders if n.split("/")[1].startswith(("l-", "r-"))]
