/** What a loss is first shown beside: the curves that make it understood. Each is a loss and the parameters it has. */

const of = (name, parameters = {}) => ({ name, parameters });

const BESIDE = {
  bce: [], bce_with_logits: [of("soft_margin"), of("sigmoid_focal")], soft_margin: [of("sigmoid_focal")],
  sigmoid_focal: [of("sigmoid_focal", { gamma: 0 }), of("sigmoid_focal", { gamma: 5 }), of("bce_with_logits")],
  cross_entropy: [of("cross_entropy", { label_smoothing: 0.1 }), of("focal"), of("multi_margin")],
  focal: [of("focal", { gamma: 0 }), of("focal", { gamma: 1 }), of("focal", { gamma: 5 }), of("cross_entropy")],
  nll: [of("cross_entropy")],
  multi_margin: [of("multi_margin", { p: 2 }), of("cross_entropy")],
  soft_f1: [of("cross_entropy"), of("focal")],
  multilabel_soft_margin: [of("bce_with_logits")],
  multilabel_margin: [of("multilabel_soft_margin")],
  mse: [of("mae"), of("huber")], mae: [of("mse"), of("huber")], huber: [of("huber", { delta: 0.3 }), of("mse"), of("mae")],
  smooth_l1: [of("smooth_l1", { beta: 0.3 }), of("smooth_l1", { beta: 2 }), of("mae")], log_cosh: [of("huber"), of("mae")],
  asymmetric_mse: [of("mse")], quantile: [of("quantile", { q: 0.1 }), of("quantile", { q: 0.9 })], gaussian_nll: [of("mse")],
  weighted_sum: [of("mse"), of("mae")],
  iou: [of("giou"), of("diou")], giou: [of("iou"), of("diou")], diou: [of("iou"), of("giou")], ciou: [of("iou"), of("giou"), of("diou")],
  dice: [of("jaccard"), of("lovasz"), of("dice", { smooth: 0 })], jaccard: [of("dice"), of("lovasz")], lovasz: [of("jaccard"), of("dice")],
  tversky: [of("tversky", { alpha: 0.2, beta: 0.8 }), of("tversky", { alpha: 0.8, beta: 0.2 })],
  focal_tversky: [of("tversky"), of("focal_tversky", { gamma: 2 })], generalized_dice: [of("dice")],
  bce_dice: [of("dice")], ce_dice: [of("dice")],
  contrastive: [of("hinge_embedding")], hinge_embedding: [of("contrastive")],
  triplet: [of("triplet", { squared: true })], mined_triplet: [of("mined_triplet", { mining: "semi_hard" })],
  info_nce: [of("nt_xent"), of("clip")], nt_xent: [of("info_nce"), of("clip")], clip: [of("info_nce")], supcon: [of("info_nce")],
  gan_discriminator: [of("hinge_gan_discriminator"), of("wgan_discriminator")],
  wgan_discriminator: [of("gan_discriminator"), of("hinge_gan_discriminator")],
  hinge_gan_discriminator: [of("gan_discriminator"), of("wgan_discriminator")],
  gan_generator: [of("gan_generator", { form: "saturating" }), of("hinge_gan_generator")],
  wgan_generator: [of("gan_generator")], hinge_gan_generator: [of("gan_generator")],
  expression: [of("mse"), of("mae")],
};

export const beside = (name) => BESIDE[name] ?? [];
